"""Killed launchers, cancelled callers, killed servers: nothing is lost and nothing is left."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest
import pytest_asyncio

from firkin.drivers.boxes.launcher import LaunchFailed
from firkin.drivers.ground.leases import SlotLeases
from firkin.drivers.ground.slots import SlotPool
from firkin.drivers.namespaces.driver import NamespacesDriver
from firkin.host.roots import HostRootPreparer
from firkin.host.wires import Wires
from firkin.law.driver import BootPlan, RootFilesystem
from firkin.law.errors import CapacityRejected
from firkin.law.ids import SandboxId
from firkin.law.resources import SandboxResources
from firkin.law.templates import TemplateSpec

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def root(state: Path) -> RootFilesystem:
    into = state / "template"
    into.mkdir()
    prepared = await HostRootPreparer().prepare(TemplateSpec.host(), into, lambda _: None)
    return prepared.root


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def driver(state: Path) -> AsyncIterator[NamespacesDriver]:
    made = NamespacesDriver.from_settings(state, {"ready_slots": "3"})
    await made.start()
    await made.sweep([])
    yield made
    await made.sweep([])
    await made.aclose()


def plan(name: str, root: RootFilesystem) -> BootPlan:
    return BootPlan(sandbox_id=SandboxId(name), root=root, resources=SandboxResources())


async def test_a_sandbox_outlives_its_launcher(driver: NamespacesDriver, root: RootFilesystem) -> None:
    instance = await driver.boot(plan("outlives", root))
    assert driver.launcher_pid is not None
    os.kill(driver.launcher_pid, signal.SIGKILL)
    channel = await instance.dial()
    assert b"protocol" in await channel.read()
    await channel.aclose()
    await instance.destroy()
    await driver.discard(instance.sandbox_id)


async def test_creates_go_on_while_launchers_are_killed(driver: NamespacesDriver, root: RootFilesystem) -> None:
    for number in range(8):
        booting = asyncio.gather(*(driver.boot(plan(f"killed{number}x{index}", root)) for index in range(4)))
        await asyncio.sleep(0.004 * number)  # different instants of the launch, not a wait for something
        if driver.launcher_pid is not None:
            os.kill(driver.launcher_pid, signal.SIGKILL)
        for instance in await booting:
            await instance.destroy()
            await driver.discard(instance.sandbox_id)
    assert await driver.live() == []


async def test_a_disk_that_cannot_be_made_is_named_and_undone(
    driver: NamespacesDriver, root: RootFilesystem, state: Path
) -> None:
    (state / "disks" / "taken.img").touch()
    with pytest.raises(LaunchFailed, match="step 'disk'"):
        await driver.boot(plan("taken", root))
    assert await driver.live() == []
    instance = await driver.boot(plan("taken", root))  # the undo removed what was in the way
    await instance.destroy()
    await driver.discard(instance.sandbox_id)


async def test_a_cancelled_caller_leaves_nothing_behind(driver: NamespacesDriver, root: RootFilesystem) -> None:
    for number in range(12):
        booting = asyncio.ensure_future(driver.boot(plan(f"cancelled{number}", root)))  # noqa: TID251 — cancelled below
        await asyncio.sleep(0.001 * number)  # different instants of the launch, not a wait for something
        booting.cancel()
        try:
            instance = await booting
        except asyncio.CancelledError:
            continue
        await instance.destroy()
        await driver.discard(instance.sandbox_id)
    assert await driver.live() == []
    assert await driver.sweep([]) == []


async def test_a_second_driver_adopts_what_the_first_one_left(state: Path, root: RootFilesystem) -> None:
    home = state / "second"
    first = NamespacesDriver.from_settings(home, {"ready_slots": "1"})
    await first.start()
    await first.sweep([])
    instance = await first.boot(plan("adopted", root))
    await first.aclose()

    second = NamespacesDriver.from_settings(home, {"ready_slots": "1"})
    await second.start()
    again = await second.adopt(instance.sandbox_id, instance.ref)
    assert again is not None
    assert await second.sweep([instance.sandbox_id]) == []
    channel = await again.dial()
    assert b"protocol" in await channel.read()
    await channel.aclose()
    await again.destroy()
    await second.discard(again.sandbox_id)
    assert await second.live() == []
    await second.aclose()


async def test_an_orphan_is_swept_by_its_label(driver: NamespacesDriver, root: RootFilesystem) -> None:
    instance = await driver.boot(plan("orphan", root))
    removed = await driver.sweep([])
    assert any("orphan" in line for line in removed)
    await instance.destroy()
    assert await driver.live() == []


async def test_a_launch_that_fails_says_in_which_step(driver: NamespacesDriver, root: RootFilesystem) -> None:
    broken = RootFilesystem(base=root.base, shared={"/not/there": "/usr"})
    with pytest.raises(Exception, match="mounts"):
        await driver.boot(BootPlan(sandbox_id=SandboxId("broken"), root=broken, resources=SandboxResources()))
    assert await driver.live() == []


async def test_a_launch_that_fails_keeps_no_descriptor(driver: NamespacesDriver, root: RootFilesystem) -> None:
    broken = RootFilesystem(base=root.base, shared={"/not/there": "/usr"})

    async def fail() -> int:
        with pytest.raises(LaunchFailed):
            await driver.boot(BootPlan(sandbox_id=SandboxId("leaky"), root=broken, resources=SandboxResources()))
        return sum("pidfd" in os.readlink(f"/proc/self/fd/{fd}") for fd in _descriptors())

    assert [await fail() for _ in range(5)][1:] == [await fail()] * 4


def _descriptors() -> list[str]:
    return [fd for fd in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{fd}")]


async def test_a_burst_beyond_the_ready_slots_is_served_by_new_ones(
    driver: NamespacesDriver, root: RootFilesystem
) -> None:
    born = await asyncio.gather(*(driver.boot(plan(f"burst{number}", root)) for number in range(12)))  # 3 are ready
    assert len({instance.ref.facts["slot"] for instance in born}) == 12
    await asyncio.gather(*(instance.destroy() for instance in born))
    await asyncio.gather(*(driver.discard(instance.sandbox_id) for instance in born))
    assert await driver.live() == []


async def test_the_kernel_keeps_no_group_of_sandboxes_that_have_gone(tmp_path: Path, root: RootFilesystem) -> None:
    driver = NamespacesDriver.from_settings(tmp_path, {"ready_slots": "3", "ready_boxes": "0"})
    await driver.start()
    await driver.sweep([])
    before = _memory_groups()
    born = [await driver.boot(plan(f"charged{number}", root)) for number in range(40)]
    assert _memory_groups() >= before + len(born)
    await asyncio.gather(*(instance.destroy() for instance in born))
    await asyncio.gather(*(driver.discard(instance.sandbox_id) for instance in born))
    async with asyncio.timeout(15):
        while _memory_groups() > before:  # noqa: ASYNC110 — the kernel sends no event for it
            await asyncio.sleep(0.05)
    await driver.aclose()


def _memory_groups() -> int:
    """With those that have no folder any more, and live on for pages that something keeps cached."""
    lines = [line.split() for line in Path("/proc/cgroups").read_text().splitlines()]
    counted = next((int(line[2]) for line in lines if line[:1] == ["memory"] and line[1] != "0"), None)  # version 1
    if counted is None:
        stat = dict(line.split() for line in Path("/sys/fs/cgroup/cgroup.stat").read_text().splitlines())
        counted = int(stat["nr_descendants"]) + int(stat["nr_dying_descendants"])
    return counted


async def test_a_machine_without_free_slots_says_so_at_once(tmp_path: Path) -> None:
    class NoLeases(SlotLeases):
        def take(self) -> list[int]:
            raise CapacityRejected("make a sandbox slot", "slots", requested=1, available=0)

    pool = SlotPool(NoLeases("full", lambda _: True, tmp_path), Wires(), depth=1)
    await pool.start(set())
    async with asyncio.timeout(5):
        for _ in range(2):
            with pytest.raises(CapacityRejected):
                await pool.take(online=False)
    await pool.aclose()


async def test_a_driver_that_closes_while_slots_come_back_keeps_no_namespace(
    tmp_path: Path, root: RootFilesystem
) -> None:
    driver = NamespacesDriver.from_settings(tmp_path, {"ready_slots": "3"})
    await driver.start()
    await driver.sweep(())
    born = await asyncio.gather(*(driver.boot(plan(f"last{number}", root)) for number in range(4)))
    networks = {os.readlink(f"/proc/self/fd/{instance.slot.network}") for instance in born}
    assert len(networks) == 4
    await asyncio.gather(*(instance.destroy() for instance in born))
    await asyncio.gather(*(driver.discard(instance.sandbox_id) for instance in born))
    await driver.aclose()
    assert not networks & set(map(_target, os.listdir("/proc/self/fd")))


def _target(fd: str) -> str:
    with suppress(OSError):  # the one that looked
        return os.readlink(f"/proc/self/fd/{fd}")
    return ""
