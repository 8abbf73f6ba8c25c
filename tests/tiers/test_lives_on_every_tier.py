"""What a sandbox's owner sees of pauses, snapshots and forks, on every tier of one real server: minutes."""

from __future__ import annotations

import pytest

from tests.e2b.lives import TestForks, TestPauses, TestSnapshots

from .served import READINESS

__all__ = ["TestForks", "TestPauses", "TestSnapshots"]

pytestmark = [
    pytest.mark.host,
    pytest.mark.slow,
    pytest.mark.timeout(180),
    pytest.mark.skipif(not READINESS.ready, reason="; ".join(READINESS.reasons) or "ready"),
    pytest.mark.filterwarnings("default::DeprecationWarning"),
]

_ASK_FOR_THE_BOOT_ID = {
    "test_a_pause_keeps_programs_and_files",
    "test_a_pause_without_memory_keeps_files_alone",
    "test_forks_are_copies_with_an_identity_of_their_own",
    "test_memory_can_be_left_behind_at_the_resumption",
}


@pytest.fixture(autouse=True)
def possible(request: pytest.FixtureRequest, tier: str) -> None:
    if tier == "gvisor" and request.node.originalname in _ASK_FOR_THE_BOOT_ID:
        pytest.skip("the kernel that gVisor plays has no /proc/sys/kernel/random/boot_id")
