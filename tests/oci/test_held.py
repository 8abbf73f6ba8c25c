"""Seen from inside and from outside: both tiers of the host's kernel hold their sandboxes alike."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from firkin.drivers.boxes.driver import BoxDriver
from firkin.drivers.boxes.rights import CAPABILITIES
from firkin.drivers.namespaces.driver import NamespacesDriver
from firkin.drivers.oci.driver import OciDriver, OciTier
from firkin.host.roots import HostRootPreparer
from firkin.law.driver import BootPlan, Instance
from firkin.law.ids import SandboxId
from firkin.law.isolation import NamespaceNumbers, SeccompMode
from firkin.law.resources import MIB, SandboxResources
from firkin.law.templates import TemplateSpec
from firkin.testing.driver_suite import said
from tests.contract.boxes import require

pytestmark = pytest.mark.host

_ROOT_S = "grep -E '^(Cap|Seccomp|NoNewPrivs|Groups)' /proc/self/status; umask; ulimit -a | grep -v pending"
_USER_S = "su user -s /bin/sh -c \"grep -E '^(Cap|Seccomp:|NoNewPrivs)' /proc/self/status; id; umask\""
_LEVERS = "for p in /proc/sys/kernel/hostname /proc/sysrq-trigger /sys/x; do [ -w $p ] || echo $p; done; ls /proc/sys"


@pytest.fixture
def size() -> SandboxResources:
    return SandboxResources(vcpus=1, memory_bytes=256 * MIB, disk_bytes=128 * MIB)


async def _asked(driver: BoxDriver, plan: BootPlan, texts: Sequence[str]) -> tuple[list[str], Instance]:
    await driver.start()
    await driver.sweep([])
    instance = await driver.boot(plan)
    return [await said(instance, text) for text in texts], instance


async def _ended(driver: BoxDriver) -> None:
    await driver.sweep([])
    await driver.aclose()


@pytest.mark.parametrize("hardened", [False, True])
async def test_root_and_the_user_have_the_same_rights_in_both(
    tmp_path: Path, size: SandboxResources, hardened: bool
) -> None:
    require(OciTier(""), tmp_path)
    into = tmp_path / "template"
    into.mkdir()
    root = (await HostRootPreparer().prepare(TemplateSpec.host(), into, lambda _: None)).root
    plan = BootPlan(sandbox_id=SandboxId("alike"), root=root, resources=size, hardened=hardened)
    found, limits = [], []
    for kind in (NamespacesDriver, OciDriver):
        driver = kind.from_settings(tmp_path / kind.isolation, {"ready_slots": "1"})
        try:
            answers, instance = await _asked(driver, plan, (_ROOT_S, *(() if hardened else (_USER_S,)), _LEVERS))
            found.append(answers)
            report = await instance.isolation()
            limits.append(report.limits)
            assert report.tier == kind.isolation
            assert report.seccomp is SeccompMode.FILTER
            assert report.no_new_privs is hardened
            assert report.capabilities is not None
            assert report.capabilities.bounding == report.capabilities.effective == CAPABILITIES
            assert report.namespaces is not None
            assert {name for name, each in report.namespaces.items() if _is_hosts(each)} <= {"time"}
        finally:
            await _ended(driver)
    assert found[0] == found[1]
    assert limits[0] == limits[1]


def _is_hosts(numbers: NamespaceNumbers) -> bool:
    return not numbers.is_own
