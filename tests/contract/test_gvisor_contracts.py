"""The gvisor driver, alone and under the engine, keeps the promises of the others, but for what runsc cannot do."""

from __future__ import annotations

import pytest

from firkin.drivers.gvisor.choice import runsc
from firkin.drivers.gvisor.driver import GvisorDriver, GvisorTier
from firkin.testing import BackendContract, DriverContract
from tests.contract.boxes import BoxBackendSuite, BoxSuite

pytestmark = [pytest.mark.host, pytest.mark.slow]

_NO_BOOT_ID = "the kernel that gVisor plays has no /proc/sys/kernel/random/boot_id"
_OLD = "this runsc refuses the flag with which ls and stat of coreutils 9 ask (AT_NO_AUTOMOUNT)"
_NO_ATTRIBUTES = "this runsc keeps no extended attributes on disk"

_NEVER = {
    "test_a_boot_continues_with_the_files_and_nothing_else": _NO_BOOT_ID,
    "test_a_boot_from_a_capture_has_its_own_identity": _NO_BOOT_ID,
    "test_a_captured_instance_runs_on": _NO_BOOT_ID,
    "test_the_boot_id_is_of_one_boot_and_survives_a_freeze": _NO_BOOT_ID,
}
_NOT_WITH_AN_OLD_ONE = {
    "test_an_impossible_mount_point_leaves_no_instance": _OLD,
    "test_an_instance_begins_where_another_ended": _OLD,
    "test_files_modes_owners_and_links_come_back": _OLD,
    "test_layers_lie_upon_each_other_and_take_away_too": _OLD,
    "test_metadata_of_files_comes_back": _NO_ATTRIBUTES,
}


class TestGvisorDriver(BoxSuite, DriverContract):
    kind = GvisorDriver
    tier = GvisorTier("")

    @pytest.fixture(autouse=True)
    def possible(self, request: pytest.FixtureRequest) -> None:
        """What no driver can make of this runsc is skipped by name, so that everything else is held to the contract."""
        beyond = {**_NEVER, **(_NOT_WITH_AN_OLD_ONE if runsc().warning else {})}
        if (reason := beyond.get(request.node.originalname)) is not None:
            pytest.skip(reason)


@pytest.mark.slow
class TestGvisorBackend(BoxBackendSuite, BackendContract):
    kind = GvisorDriver
    tier = GvisorTier("")
