"""How many are made ahead, of what kind, and whose they are: with boxes that are not real."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from firkin.drivers.boxes.preforks import LEAST, BoxKind, Prefork, bounds, is_there
from firkin.drivers.boxes.tier import Ahead
from firkin.drivers.ground.launch_helper import Launched
from firkin.drivers.ground.shelf import Shelf
from firkin.drivers.ground.slots import Slot
from firkin.law.driver import RootFilesystem
from firkin.law.errors import BackendFailure
from firkin.law.ids import SandboxId
from firkin.law.resources import GIB, SandboxResources

USUAL = BoxKind.of(SandboxResources())
SMALL = BoxKind.of(SandboxResources(disk_bytes=GIB))
TINY = BoxKind.of(SandboxResources(disk_bytes=GIB // 2))
Boxes = Shelf[BoxKind, Prefork]


class Maker:
    """Makes what looks like a box, and remembers which there are."""

    def __init__(self) -> None:
        self.alive: dict[SandboxId, Prefork] = {}
        self.theirs: dict[SandboxId, socket.socket] = {}
        self.failures = 0
        self.never: BoxKind | None = None
        self.has_room = True
        self.slow_end: asyncio.Event | None = None
        self.slow_make: asyncio.Event | None = None

    async def make(self, name: SandboxId, kind: BoxKind) -> Prefork:
        await asyncio.sleep(0)
        if self.slow_make is not None:
            await self.slow_make.wait()
        if kind == self.never:
            raise BackendFailure("make a box", "a test", "never")
        if self.failures:
            self.failures -= 1
            raise BackendFailure("make a box", "a test", "not this time")
        ours, self.theirs[name] = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        launched = Launched(0, os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))
        self.alive[name] = Prefork(name, kind, Slot(0), launched, 0, ours)
        return self.alive[name]

    async def end(self, prefork: Prefork) -> None:
        if self.slow_end is not None:
            await self.slow_end.wait()
        prefork.close()
        self.theirs.pop(prefork.sandbox_id).close()
        del self.alive[prefork.sandbox_id]

    def sizes(self) -> list[int]:
        return sorted(prefork.kind.disk_bytes for prefork in self.alive.values())


@asynccontextmanager
async def preforks(most: int = 8, *, failures: int = 0, **more: float) -> AsyncIterator[tuple[Boxes, Maker]]:
    maker = Maker()
    maker.failures = failures
    limits = replace(bounds(Ahead.HALF, most), after_s=0, **more)
    kept = Shelf(maker.make, maker.end, limits, first=(USUAL,), has_room=lambda _kind: maker.has_room)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(kept.aclose)
        yield kept, maker
    assert maker.alive == {}


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not holds():  # noqa: ASYNC110 — of any state; nobody tells
            await asyncio.sleep(0.002)


async def given_away(kept: Boxes, maker: Maker, wanted: BoxKind) -> SandboxId:
    """As a boot does: promised, taken, and gone."""
    name = kept.promise(lambda kind: kind == wanted)
    assert name is not None
    prefork = await kept.take(name)
    assert prefork is not None
    await maker.end(prefork)
    return name


async def test_nothing_is_made_before_the_start_or_where_none_is_wanted() -> None:
    async with preforks() as (kept, maker):
        await asyncio.sleep(0.03)
        assert maker.alive == {}
    async with preforks(most=0) as (kept, maker):
        kept.start()
        await asyncio.sleep(0.03)
        assert maker.alive == {}


async def test_a_few_are_kept_and_each_is_promised_once() -> None:
    async with preforks() as (kept, maker):
        kept.start()
        await until(lambda: len(maker.alive) == LEAST)
        names = {kept.promise(USUAL.__eq__) for _ in range(LEAST)}
        assert names == set(maker.alive) == kept.names
        assert kept.promise(USUAL.__eq__) is None
        assert kept.promise(SMALL.__eq__) is None


async def test_what_is_taken_is_made_again_after_the_launch() -> None:
    async with preforks() as (kept, maker):
        kept.start()
        await until(lambda: len(maker.alive) == LEAST)
        with kept.launching(USUAL):
            gone = await given_away(kept, maker, USUAL)
            await asyncio.sleep(0.03)
            assert len(maker.alive) == LEAST - 1
        await until(lambda: len(maker.alive) == LEAST)
        assert gone not in maker.alive


@pytest.mark.parametrize(("most", "at_once", "wanted"), [(8, 5, 5), (4, 6, 4), (8, 1, LEAST), (1, 3, 1)])
async def test_as_many_are_kept_as_were_wanted_at_once_within_bounds(most: int, at_once: int, wanted: int) -> None:
    async with preforks(most=most) as (kept, maker):
        kept.start()
        with ExitStack() as boots:
            for _ in range(at_once):
                boots.enter_context(kept.launching(USUAL))
        await until(lambda: len(maker.alive) == wanted)
        await asyncio.sleep(0.03)
        assert len(maker.alive) == wanted


async def test_the_kinds_asked_for_last_are_kept() -> None:
    async with preforks(kinds=2) as (kept, maker):
        kept.start()
        await until(lambda: len(maker.alive) == LEAST)
        with kept.launching(SMALL):
            pass
        await until(lambda: maker.sizes() == [GIB] * LEAST + [USUAL.disk_bytes] * LEAST)
        with kept.launching(TINY):
            pass
        await until(lambda: maker.sizes() == [GIB // 2] * LEAST + [GIB] * LEAST)


async def test_a_kind_that_is_asked_for_again_stays_before_one_that_is_not() -> None:
    async with preforks(kinds=2) as (kept, maker):
        for kind in (USUAL, SMALL, USUAL, TINY):
            with kept.launching(kind):
                pass
        kept.start()
        await until(lambda: maker.sizes() == [GIB // 2] * LEAST + [USUAL.disk_bytes] * LEAST)


async def test_one_that_dies_is_buried_and_replaced() -> None:
    async with preforks() as (kept, maker):
        kept.start()
        await until(lambda: len(maker.alive) == LEAST)
        dead = next(iter(maker.theirs))
        maker.theirs[dead].shutdown(socket.SHUT_RDWR)
        await until(lambda: dead not in maker.alive and len(maker.alive) == LEAST)


async def test_whoever_wants_one_that_is_being_ended_waits_until_nothing_of_it_is_left() -> None:
    async with preforks() as (kept, maker):
        kept.start()
        await until(lambda: len(maker.alive) == LEAST)
        name = kept.promise(USUAL.__eq__)
        assert name is not None
        maker.slow_end = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(kept.end(name))
            await asyncio.sleep(0)
            taking = tasks.create_task(kept.take(name))
            await asyncio.sleep(0.01)
            assert not taking.done()
            assert name in kept.names
            maker.slow_end.set()
        assert taking.result() is None
        assert name not in maker.alive


async def test_whoever_finds_none_ready_waits_for_the_one_that_is_being_made() -> None:
    async with preforks() as (kept, maker):
        maker.slow_make = asyncio.Event()
        kept.start()
        await until(lambda: len(kept.names) == 1)
        assert kept.promise(USUAL.__eq__) is None
        assert kept.promise_unfinished(SMALL.__eq__) is None
        name = kept.promise_unfinished(USUAL.__eq__)
        assert {name} == kept.names
        assert kept.promise_unfinished(USUAL.__eq__) is None
        async with asyncio.TaskGroup() as tasks:
            assert name is not None
            taking = tasks.create_task(kept.take(name))
            await asyncio.sleep(0.01)
            assert not taking.done()
            maker.slow_make.set()
        taken = taking.result()
        assert taken is not None
        assert (taken.sandbox_id, kept.promise_unfinished(USUAL.__eq__) == name) == (name, False)
        await maker.end(taken)


async def promised_unfinished(kept: Boxes, maker: Maker) -> tuple[SandboxId, Callable[[], None]]:
    """The name of the first that is made, and what lets it be finished."""
    maker.slow_make = asyncio.Event()
    kept.start()
    await until(lambda: len(kept.names) == 1)
    name = kept.promise_unfinished(USUAL.__eq__)
    assert name is not None
    return name, maker.slow_make.set


async def test_one_that_was_promised_unfinished_and_is_not_wanted_is_ended() -> None:
    async with preforks() as (kept, maker):
        name, finish = await promised_unfinished(kept, maker)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(kept.end(name))
            await asyncio.sleep(0.01)
            finish()
        await until(lambda: len(maker.alive) == LEAST)
        assert name not in maker.alive


async def test_whoever_makes_one_can_end_it_on_the_way() -> None:
    async with preforks() as (kept, _):
        asked: list[SandboxId] = []

        async def given_up(name: SandboxId, kind: BoxKind) -> Prefork:
            asked.append(name)
            await kept.end(name)
            raise BackendFailure("make a box", "a test", "it was given up")

        kept._make = given_up
        kept.start()
        await until(lambda: bool(asked) and not kept.names)


async def test_whoever_waits_for_one_that_cannot_be_made_is_told() -> None:
    async with preforks(failures=1) as (kept, maker):
        name, finish = await promised_unfinished(kept, maker)
        async with asyncio.TaskGroup() as tasks:
            taking = tasks.create_task(kept.take(name))
            await asyncio.sleep(0.01)
            finish()
        assert taking.result() is None
        await until(lambda: len(maker.alive) == LEAST)
        assert name not in maker.alive


@pytest.mark.thorough
async def test_a_failure_is_tried_again() -> None:
    async with preforks(failures=2) as (kept, maker):
        kept.start()
        await until(lambda: len(maker.alive) == LEAST)


async def test_a_kind_that_cannot_be_made_keeps_no_other_from_being_made() -> None:
    async with preforks() as (kept, maker):
        maker.never = SMALL
        kept.start()
        with kept.launching(SMALL):  # the one asked for last is tried first
            pass
        await until(lambda: maker.sizes() == [USUAL.disk_bytes] * LEAST)
        gone = await given_away(kept, maker, USUAL)
        with kept.launching(USUAL):
            pass
        await until(lambda: maker.sizes() == [USUAL.disk_bytes] * LEAST and gone not in maker.alive)
        maker.never = None
        await until(lambda: maker.sizes() == [GIB] * LEAST + [USUAL.disk_bytes] * LEAST)


async def test_a_launch_that_fails_pushes_no_kind_out() -> None:
    async with preforks(kinds=1) as (kept, maker):
        kept.start()
        await until(lambda: len(maker.alive) == LEAST)
        before = set(maker.alive)
        with pytest.raises(BackendFailure), kept.launching(SMALL):
            raise BackendFailure("create sandbox", "a test", "refused")
        await asyncio.sleep(0.03)
        assert set(maker.alive) == before


def test_a_root_made_anew_in_the_same_place_is_another_kind(tmp_path: Path) -> None:
    layer, root = tmp_path / "layer", RootFilesystem(base=str(tmp_path), layers=(str(tmp_path / "layer"),))
    layer.mkdir()
    kind = BoxKind.of(SandboxResources(), root)
    assert kind.fits(SandboxResources(), root)
    assert is_there(kind)
    layer.rename(tmp_path / "old")
    assert not is_there(kind)
    layer.mkdir()
    assert BoxKind.of(SandboxResources(), root) != kind
    assert not kind.fits(SandboxResources(), root)
    assert not is_there(kind)


async def test_a_host_without_room_keeps_none_until_it_has_some_again() -> None:
    async with preforks() as (kept, maker):
        kept.start()
        await until(lambda: len(maker.alive) == LEAST)
        maker.has_room = False
        with kept.launching(USUAL):
            pass
        await until(lambda: maker.alive == {})
        maker.has_room = True
        with kept.launching(USUAL):
            pass
        await until(lambda: len(maker.alive) == LEAST)


async def test_what_nobody_asks_for_any_more_is_kept_no_longer() -> None:
    async with preforks(unasked_s=0.05) as (kept, maker):
        kept.start()
        await until(lambda: len(maker.alive) == LEAST)
        await asyncio.sleep(0.05)
        with kept.launching(SMALL):
            pass
        await until(lambda: USUAL.disk_bytes not in maker.sizes())
