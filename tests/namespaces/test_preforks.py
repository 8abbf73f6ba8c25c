"""Boxes that are half made ahead of need: what they become, and what is left of those that become nothing."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from firkin.drivers.boxes.preforks import BoxKind, Prefork
from firkin.drivers.namespaces.driver import NamespacesDriver
from firkin.host.roots import HostRootPreparer
from firkin.law.driver import BootPlan
from firkin.law.ids import SandboxId
from firkin.law.resources import MIB, SandboxResources
from firkin.law.templates import TemplateSpec
from firkin.testing.conversation import Conversation

pytestmark = pytest.mark.asyncio
USUAL = SandboxResources()


class Ahead:
    """A driver that makes boxes ahead, and plans for it."""

    def __init__(self, driver: NamespacesDriver, usual: BootPlan, state: Path) -> None:
        self.driver = driver
        self.usual = usual
        self.state = state

    async def promised(self, disk_bytes: int = USUAL.disk_bytes) -> SandboxId:
        """One that is furnished, where the plan repeats."""
        resources = replace(USUAL, disk_bytes=disk_bytes)
        async with asyncio.timeout(20):
            while True:
                name = self.driver.prepared("", self.usual.root, resources)
                while name in self.driver._preforks.names and name not in self.driver._preforks._ready:  # noqa: ASYNC110 — of a test
                    await asyncio.sleep(0.001)  # it is being made
                if name is not None and bool(self.held(name).kind.root) is self.usual.repeats:
                    return name
                if name is not None:
                    await self.driver.discard(name)
                await asyncio.sleep(0.01)

    async def unfinished(self) -> SandboxId:
        """One that is promised while it is being made, furnished."""
        boxes = self.driver._preforks
        async with asyncio.timeout(20):
            while True:
                if (ready := self.driver.prepared("", self.usual.root, USUAL)) is not None:
                    if ready not in boxes._ready:
                        return ready
                    await self.driver.discard(ready)
                await asyncio.sleep(0)

    async def asked_for(self) -> None:
        """Somebody has the first sandbox of the template, so more may be wanted."""
        instance = await self.driver.boot(self.plan(SandboxId("first")))
        await instance.destroy()
        await self.driver.discard(SandboxId("first"))

    def plan(self, name: SandboxId, resources: SandboxResources = USUAL) -> BootPlan:
        return replace(self.usual, sandbox_id=name, resources=resources, hostname=str(name))

    def held(self, name: SandboxId) -> Prefork:
        return self.driver._preforks._ready[name]

    def traces(self, name: SandboxId) -> list[str]:
        """What the host has of a box of that name."""
        groups = Path("/sys/fs/cgroup")  # nothing is walked through that may go meanwhile
        boxes = [str(path) for where in ("firkin", "*/firkin") for path in groups.glob(f"{where}/*/{name}")]
        return boxes + [str(path) for path in (self.state / "disks").glob(f"{name}*")]


@asynccontextmanager
async def making_ahead(state: Path, *, furnished: bool = False, **options: str) -> AsyncIterator[Ahead]:
    into = state / "template"
    into.mkdir()
    prepared = await HostRootPreparer().prepare(TemplateSpec.host(), into, lambda _: None)
    driver = NamespacesDriver.from_settings(state, {"ready_slots": "2", **options})
    await driver.start()
    await driver.sweep([])
    usual = BootPlan(sandbox_id=SandboxId("unused"), root=prepared.root, resources=USUAL, repeats=furnished)
    try:
        ahead = Ahead(driver, usual, state)
        if furnished:
            await ahead.asked_for()
        yield ahead
    finally:
        await driver.aclose()
    assert list((state / "disks").glob("i*.img")) == []


async def gone(ahead: Ahead, name: SandboxId) -> None:
    async with asyncio.timeout(10):
        while ahead.traces(name):  # noqa: ASYNC110 — the kernel tells nobody
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("furnished", [False, True])
async def test_a_box_made_ahead_becomes_a_sandbox_with_the_limits_that_were_asked_for(
    tmp_path: Path, furnished: bool
) -> None:
    async with making_ahead(tmp_path, furnished=furnished) as ahead:
        name = await ahead.promised()
        waiting = ahead.held(name).launched.pid
        wanted = SandboxResources(vcpus=1, memory_bytes=192 * MIB, pids=77)
        instance = await ahead.driver.boot(ahead.plan(name, wanted))
        assert instance.sandbox_id == name
        assert instance.ref.facts["pid"] == waiting
        report = await instance.isolation()
        limits = dict(report.limits or {})
        assert limits.get("user/pids.max") == "77"
        memory = limits.get("user/memory.limit_in_bytes") or limits.get("user/memory.max")
        assert memory == str(192 * MIB)
        async with await Conversation.open(await instance.dial()) as talk:
            answer = await talk.run("/bin/sh", "-c", "hostname; cat /etc/hostname; df -m / | tail -n 1")
            assert answer.stdout.decode().splitlines()[:2] == [str(name), str(name)]
        await instance.destroy()
        await ahead.driver.discard(name)
        assert ahead.traces(name) == []


async def test_what_waits_is_no_sandbox_and_no_leftover(tmp_path: Path) -> None:
    async with making_ahead(tmp_path) as ahead:
        name = await ahead.promised()
        assert await ahead.driver.live() == []
        assert await ahead.driver.sweep([]) == []
        assert ahead.traces(name) != []


async def test_a_box_that_dies_while_it_waits_is_removed_and_made_again(tmp_path: Path) -> None:
    async with making_ahead(tmp_path) as ahead:
        name = await ahead.promised()
        os.kill(ahead.held(name).launched.pid, signal.SIGKILL)
        await gone(ahead, name)
        other = await ahead.promised()
        assert other != name


@pytest.mark.parametrize("furnished", [False, True])
async def test_a_box_that_dies_when_it_is_wanted_is_made_anew_under_its_name(tmp_path: Path, furnished: bool) -> None:
    async with making_ahead(tmp_path, furnished=furnished) as ahead:
        for number in range(8):
            name = await ahead.promised()
            pid = ahead.held(name).launched.pid
            booting = asyncio.ensure_future(ahead.driver.boot(ahead.plan(name)))  # noqa: TID251 — awaited below
            await asyncio.sleep(0.001 * number)  # different instants of the launch, not a wait for something
            if not booting.done():
                os.kill(pid, signal.SIGKILL)
            instance = await booting
            await instance.destroy()
            await ahead.driver.discard(name)
            assert ahead.traces(name) == []


@pytest.mark.parametrize("furnished", [False, True])
async def test_a_caller_who_goes_away_leaves_nothing_of_it(tmp_path: Path, furnished: bool) -> None:
    async with making_ahead(tmp_path, furnished=furnished) as ahead:
        await begun_and_left(ahead, ahead.promised)


async def begun_and_left(ahead: Ahead, promised: Callable[[], Awaitable[SandboxId]]) -> None:
    """Launches whose callers go away after some milliseconds each."""
    for number in range(10):
        name = await promised()
        booting = asyncio.ensure_future(ahead.driver.boot(ahead.plan(name)))  # noqa: TID251 — cancelled below
        await asyncio.sleep(0.001 * number)  # different instants of the launch, not a wait for something
        booting.cancel()
        try:
            instance = await booting
        except asyncio.CancelledError:
            assert ahead.traces(name) == []
            continue
        await instance.destroy()
        await ahead.driver.discard(name)
    assert await ahead.driver.live() == []


async def test_a_sandbox_moves_into_a_box_that_is_being_made(tmp_path: Path) -> None:
    async with making_ahead(tmp_path, furnished=True, ready_boxes="1") as ahead:
        name = await ahead.unfinished()
        instance = await ahead.driver.boot(ahead.plan(name))
        async with await Conversation.open(await instance.dial()) as talk:
            assert (await talk.run("/bin/echo", "in")).stdout == b"in\n"
        await instance.destroy()
        await ahead.driver.discard(name)
        assert ahead.traces(name) == []


async def test_a_caller_who_goes_away_while_a_box_is_being_made_leaves_nothing_of_it(tmp_path: Path) -> None:
    async with making_ahead(tmp_path, furnished=True, ready_boxes="1") as ahead:
        await begun_and_left(ahead, ahead.unfinished)


async def test_a_promise_that_is_not_kept_is_discarded(tmp_path: Path) -> None:
    async with making_ahead(tmp_path) as ahead:
        name = await ahead.promised()
        await ahead.driver.discard(name)
        assert ahead.traces(name) == []
        assert await ahead.promised() != name


async def test_another_size_of_disk_is_made_at_once_and_ahead_from_then_on(tmp_path: Path) -> None:
    other = replace(USUAL, disk_bytes=300 * MIB)
    async with making_ahead(tmp_path) as ahead:
        name = await ahead.promised()
        assert ahead.driver.prepared("", ahead.usual.root, other) is None
        instance = await ahead.driver.boot(ahead.plan(name, other))  # a promise for a box that does not fit
        assert (tmp_path / "disks" / f"{name}.img").stat().st_size == other.disk_bytes
        await instance.destroy()
        await ahead.driver.discard(name)
        assert await ahead.promised(other.disk_bytes)


async def test_a_box_is_not_given_away_on_a_root_that_was_made_anew(tmp_path: Path) -> None:
    """A deleted template that is prepared again may lie where it lay, and what is mounted is the old one."""
    async with making_ahead(tmp_path, furnished=True) as ahead:
        name = await ahead.promised()
        base = Path(ahead.usual.root.base)
        shutil.copytree(base, tmp_path / "anew", symlinks=True)
        (tmp_path / "anew" / "newer").touch()
        base.rename(tmp_path / "old")
        (tmp_path / "anew").rename(base)
        instance = await ahead.driver.boot(ahead.plan(name))
        async with await Conversation.open(await instance.dial()) as talk:
            assert (await talk.run("/bin/sh", "-c", "ls /newer")).stdout == b"/newer\n"
        await instance.destroy()
        await ahead.driver.discard(name)


@pytest.mark.parametrize("furnished", [False, True])
async def test_boxes_without_a_server_remove_themselves(tmp_path: Path, furnished: bool) -> None:
    """As when it was killed: nobody is at the other end of their channels any more."""
    async with making_ahead(tmp_path, furnished=furnished) as ahead:
        name = await ahead.promised()
        prefork = await ahead.driver._preforks.take(name)
        assert prefork is not None
        prefork.channel.close()
        if ahead.driver._trees.layout.version == 1:  # a process cannot leave its group where groups have no members
            await gone(ahead, name)
        await ahead.driver._end_prefork(prefork)


@pytest.mark.parametrize("furnished", [False, True])
async def test_a_killed_launcher_takes_no_waiting_box_with_it(tmp_path: Path, furnished: bool) -> None:
    async with making_ahead(tmp_path, furnished=furnished) as ahead:
        name = await ahead.promised()
        assert ahead.driver.launcher_pid is not None
        os.kill(ahead.driver.launcher_pid, signal.SIGKILL)
        instance = await ahead.driver.boot(ahead.plan(name))
        await instance.destroy()
        await ahead.driver.discard(name)


async def test_none_is_made_where_none_is_wanted(tmp_path: Path) -> None:
    async with making_ahead(tmp_path, ready_boxes="0") as ahead:
        instance = await ahead.driver.boot(ahead.plan(SandboxId("plain")))
        assert ahead.driver.prepared("", ahead.usual.root, USUAL) is None
        assert ahead.driver._preforks.names == set()
        await instance.destroy()
        await ahead.driver.discard(SandboxId("plain"))


async def test_a_furnished_box_is_for_its_template_alone(tmp_path: Path) -> None:
    async with making_ahead(tmp_path, furnished=True) as ahead:
        name = await ahead.promised()
        waiting = ahead.held(name).launched.pid
        other = tmp_path / "other"
        shutil.copytree(ahead.usual.root.base, other, symlinks=True)
        (other / "etc" / "which").write_text("the other")
        root = replace(ahead.usual.root, base=str(other))
        instance = await ahead.driver.boot(replace(ahead.plan(name), root=root))
        assert instance.ref.facts["pid"] != waiting
        async with await Conversation.open(await instance.dial()) as talk:
            assert (await talk.run("/bin/cat", "/etc/which")).stdout == b"the other"
        await instance.destroy()
        await ahead.driver.discard(name)


async def test_boxes_of_a_template_that_was_deleted_are_ended(tmp_path: Path) -> None:
    async with making_ahead(tmp_path, furnished=True) as ahead:
        name = await ahead.promised()
        await ahead.driver.discard(name)
        shutil.rmtree(ahead.usual.root.base)
        with ahead.driver._preforks.launching(BoxKind.of(USUAL)):  # as somebody else's boot, after which it looks again
            pass
        async with asyncio.timeout(10):
            while any(box.kind.root for box in ahead.driver._preforks._ready.values()):  # noqa: ASYNC110 — nobody tells
                await asyncio.sleep(0.01)
