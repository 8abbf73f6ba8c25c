"""What holds a real sandbox in, as it is reported, against what is seen from inside."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import pytest_asyncio

from firkin import Runtime
from firkin.bootstrap.tier_assembly import build_driver
from firkin.drivers.ground.numbers import SlotNumbers
from firkin.engine.backend import LocalBackend
from firkin.host.cgroups import AGENT_RESERVE_PIDS
from firkin.host.layer_store import LayerStore
from firkin.host.roots import HostRootPreparer
from firkin.law.errors import UnsupportedCapability
from firkin.law.ids import SandboxId, TemplateId
from firkin.law.isolation import IdRange, Isolation, IsolationReport, SeccompMode
from firkin.law.network import NetworkPolicy
from firkin.law.processes import Command
from firkin.law.resources import MIB, SandboxResources
from firkin.law.sandboxes import SandboxFilter, SandboxSpec
from firkin.law.snapshots import PauseOptions
from firkin.law.templates import TemplateSpec
from firkin.settings import read_settings

pytestmark = pytest.mark.asyncio(loop_scope="module")
RESOURCES = SandboxResources(vcpus=1, memory_bytes=128 * MIB, disk_bytes=64 * MIB, pids=77)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def backend(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalBackend]:
    """As a server has it: the driver among its tiers."""
    state = tmp_path_factory.mktemp("state")
    settings = read_settings({"state_dir": state, "driver_options": {"ready_slots": "3"}})
    layers = LayerStore(state / "layers")
    driver = build_driver(settings)
    made = LocalBackend(driver=driver, preparer=HostRootPreparer(layers=layers), state_dir=state, layers=layers)
    async with Runtime.open(made, kill_all=True) as opened:
        await opened.templates.prepare(TemplateSpec.host(id=TemplateId("base")))
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sandbox(backend: LocalBackend) -> SandboxId:
    spec = SandboxSpec.from_template("base", resources=RESOURCES, isolation=Isolation.NAMESPACES)
    return (await backend.sandboxes.create(spec)).id


@pytest_asyncio.fixture(loop_scope="module")
async def report(backend: LocalBackend, sandbox: SandboxId) -> IsolationReport:
    return await backend.sandboxes.isolation(sandbox)


async def inside(backend: LocalBackend, sandbox: SandboxId, text: str) -> str:
    output = await backend.processes.run(sandbox, Command.shell(text))
    return output.stdout.decode().strip()


async def test_every_fact_of_this_tier_is_read(report: IsolationReport) -> None:
    assert (report.tier, report.driver) == ("namespaces", "namespaces")
    assert report.unread == {"accelerator": "it is no virtual machine: the host's kernel answers"}


async def test_the_kernel_and_the_ids_are_those_that_are_seen_inside(
    backend: LocalBackend, sandbox: SandboxId, report: IsolationReport
) -> None:
    assert report.kernel_release == await inside(backend, sandbox, "uname -r") == os.uname().release
    assert report.uid_map is not None
    seen = await inside(backend, sandbox, "cat /proc/self/uid_map")
    assert [IdRange(inside=row[0], outside=row[1], count=row[2]) for row in _rows(seen)] == [
        replace(each, outside=row[1]) for each, row in zip(report.uid_map, _rows(seen), strict=True)
    ]
    resident = backend._started().roster.get(sandbox)
    assert resident is not None
    assert resident.ref is not None
    assert report.uid_map[0].outside == SlotNumbers(int(resident.ref.facts["slot"])).first_uid


def _rows(text: str) -> list[tuple[int, int, int]]:
    return [(int(a), int(b), int(c)) for a, b, c in (line.split() for line in text.splitlines())]


async def test_namespaces_are_its_own_and_those_that_are_seen_inside(
    backend: LocalBackend, sandbox: SandboxId, report: IsolationReport
) -> None:
    assert report.namespaces is not None
    own = {kind for kind, numbers in report.namespaces.items() if numbers.is_own}
    assert own >= {"cgroup", "ipc", "mnt", "net", "pid", "user", "uts"}
    for kind in ("ipc", "net", "uts", "user", "pid", "mnt"):
        seen = await inside(backend, sandbox, f"readlink /proc/self/ns/{kind}")
        assert seen == f"{kind}:[{report.namespaces[kind].inside}]"


async def test_rights_are_those_of_a_process_inside(
    backend: LocalBackend, sandbox: SandboxId, report: IsolationReport
) -> None:
    assert report.capabilities is not None
    bounding = await inside(backend, sandbox, "grep CapBnd /proc/self/status | cut -f2")
    assert int(bounding, 16) & ~report.capabilities.bounding == 0
    assert not report.capabilities.bounding >> 21 & 1, "CAP_SYS_ADMIN"
    assert report.seccomp is SeccompMode.FILTER
    assert await inside(backend, sandbox, "grep -w Seccomp: /proc/self/status | cut -f2") == "2"
    assert report.no_new_privs is False


async def test_limits_are_read_from_the_control_groups(report: IsolationReport) -> None:
    assert report.limits is not None
    assert report.limits["pids.max"] == str(RESOURCES.pids + AGENT_RESERVE_PIDS)
    assert report.limits["user/pids.max"] == str(RESOURCES.pids)
    assert any(text == str(RESOURCES.memory_bytes) for text in report.limits.values())


async def test_a_change_of_the_network_shows_once_the_kernel_has_it(backend: LocalBackend, sandbox: SandboxId) -> None:
    assert (await backend.sandboxes.isolation(sandbox)).network == NetworkPolicy()
    policy = NetworkPolicy(internet=True, deny_out=("9.9.9.9",))
    await backend.sandboxes.update_network(sandbox, policy)
    assert (await backend.sandboxes.isolation(sandbox)).network == policy


async def test_a_frozen_one_is_still_looked_at(
    backend: LocalBackend, sandbox: SandboxId, report: IsolationReport
) -> None:
    assert backend.pauses is not None
    await backend.pauses.pause(sandbox, PauseOptions())
    assert (await backend.sandboxes.isolation(sandbox)).namespaces == report.namespaces
    await backend.pauses.resume(sandbox)


async def test_a_hardened_one_says_so(backend: LocalBackend) -> None:
    made = await backend.sandboxes.create(SandboxSpec.from_template("base", resources=RESOURCES, hardened=True))
    assert (await backend.sandboxes.isolation(made.id)).no_new_privs is True


async def test_tiers_without_a_driver_here_are_refused_and_leave_nothing(backend: LocalBackend) -> None:
    before = [info.id for info in await backend.sandboxes.list(SandboxFilter())]
    missing = [status for status in await backend.tiers() if not status.preflight.ready]
    for status in missing:
        assert status.preflight.reasons
        with pytest.raises(UnsupportedCapability, match="cannot isolate by"):
            await backend.sandboxes.create(SandboxSpec.from_template("base", isolation=status.isolation))
    assert [info.id for info in await backend.sandboxes.list(SandboxFilter())] == before
