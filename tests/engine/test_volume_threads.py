"""Work on volumes: nobody's work keeps others from theirs, and what nobody waits for is not done."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest

from firkin.engine import volume_threads
from firkin.engine.volume_threads import VolumeThreads
from firkin.host import tree_files
from firkin.host.confined import ConfinedTree
from firkin.law.errors import CapacityRejected, FirkinError
from firkin.law.ids import VolumeId, VolumeName
from firkin.law.volumes import VolumeAttributes, VolumeControl, VolumePath, VolumeSpec
from tests.engine.conftest import Engine, engine_over
from tests.volumes_in_folders import DriverWithVolumes

SIZE = 8


@pytest.fixture
def threads() -> Iterator[VolumeThreads]:
    made = VolumeThreads(SIZE)
    yield made
    made.shutdown()


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What everything in these tests waits for."""
    made = threading.Event()
    yield made
    made.set()


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Engine]:
    async with engine_over(tmp_path / "state", driver=DriverWithVolumes(tmp_path / "volumes")) as started:
        yield started


def running(works: list[Future[bool]]) -> int:
    return sum(work.running() for work in works)


async def until_running(works: list[Future[bool]], count: int) -> None:
    async with asyncio.timeout(5):
        while running(works) < count:  # noqa: ASYNC110 — threads tell nobody
            await asyncio.sleep(0.001)


async def test_an_owner_takes_half_of_what_is_free_and_leaves_some_for_the_next(
    threads: VolumeThreads, gate: threading.Event
) -> None:
    greedy = [threads.submit("greedy", gate.wait) for _ in range(50)]
    await until_running(greedy, SIZE // 2)
    second = [threads.submit("second", gate.wait) for _ in range(50)]
    await until_running(second, SIZE // 4)
    assert await asyncio.wait_for(asyncio.wrap_future(threads.submit("third", lambda: "done")), 5) == "done"
    assert (running(greedy), running(second)) == (SIZE // 2, SIZE // 4)
    gate.set()
    for work in (*greedy, *second):
        assert await asyncio.wrap_future(work)


async def test_what_was_given_up_in_its_line_is_never_begun(threads: VolumeThreads, gate: threading.Event) -> None:
    busy = [threads.submit("one", gate.wait) for _ in range(SIZE)]
    begun: list[int] = []
    waiting = [threads.submit("one", lambda: begun.append(1)) for _ in range(20)]
    assert all(work.cancel() for work in waiting)
    gate.set()
    for work in busy:
        await asyncio.wrap_future(work)
    await asyncio.wrap_future(threads.submit("one", lambda: None))
    assert begun == []


async def test_a_line_that_is_full_takes_nothing_new_of_that_owner(
    threads: VolumeThreads, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(volume_threads, "MOST_WAITING", 5)
    works = [threads.submit("one", gate.wait) for _ in range(SIZE // 2 + 5)]
    with pytest.raises(CapacityRejected, match="line of calls"):
        threads.check_room("one")
    threads.check_room("two")
    works[-1].cancel()
    threads.check_room("one")


async def test_a_failure_is_told_and_its_thread_goes_on(threads: VolumeThreads) -> None:
    for _ in range(SIZE * 2):
        with pytest.raises(ZeroDivisionError):
            await asyncio.wrap_future(threads.submit("one", lambda: 1 // 0))


def test_what_waits_at_the_end_is_still_done(threads: VolumeThreads, gate: threading.Event) -> None:
    works = [threads.submit("one", gate.wait) for _ in range(SIZE * 3)]
    threads.shutdown()
    with pytest.raises(RuntimeError):
        threads.submit("one", gate.wait)
    gate.set()
    assert all(work.result(5) for work in works)


async def volume_of(engine: Engine, owner: str) -> tuple[VolumeControl, VolumeId]:
    control = engine.backend.volumes
    assert control is not None
    return control, (await control.create(VolumeSpec(name=VolumeName("data"), owner=owner))).id


async def test_lists_that_nobody_waits_for_hold_up_no_other_tenant(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each walk goes on until it is told that its caller has gone."""
    control, bobs = await volume_of(engine, "bob")
    _, alices = await volume_of(engine, "alice")
    begun = threading.Event()

    def endless(_tree: ConfinedTree, _path: VolumePath, *, wanted: object, **_bounds: object) -> list[object]:
        begun.set()
        while wanted():  # type: ignore[operator]
            threading.Event().wait(0.002)
        raise OSError("nobody waits")

    with monkeypatch.context() as slow:
        slow.setattr(tree_files, "entries_below", endless)
        asked = [asyncio.ensure_future(control.files.list(bobs, VolumePath("/"))) for _ in range(60)]  # noqa: TID251 — gathered below
        await asyncio.to_thread(begun.wait, 5)
        async with asyncio.timeout(5):
            await control.files.stat(alices, VolumePath("/"))
        for one in asked:
            one.cancel()
        ends = await asyncio.gather(*asked, return_exceptions=True)
    assert {type(end) for end in ends} == {asyncio.CancelledError}
    async with asyncio.timeout(5):
        assert list(await control.files.list(bobs, VolumePath("/"))) == []


async def test_a_change_is_made_also_when_its_caller_has_gone(engine: Engine, gate: threading.Event) -> None:
    control, volume = await volume_of(engine, "bob")
    busy = [engine.node.volume_threads.submit("bob", gate.wait) for _ in range(60)]
    making = asyncio.ensure_future(  # noqa: TID251 — awaited below
        control.files.make_directory(volume, VolumePath("/x"), VolumeAttributes())
    )
    await asyncio.sleep(0.01)  # it is in its line by then; earlier would be as well
    making.cancel()
    with pytest.raises(asyncio.CancelledError):
        await making
    gate.set()
    await asyncio.gather(*(asyncio.wrap_future(one) for one in busy))
    async with asyncio.timeout(5):
        assert [entry.path for entry in await control.files.list(volume, VolumePath("/"))] == ["/x"]


async def test_a_list_of_few_names_that_take_much_memory_is_refused(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("firkin.engine.volume_files.MOST_BYTES", 1000)
    control, volume = await volume_of(engine, "bob")
    for number in range(5):
        name = VolumePath(f"/{number}{'x' * 240}")
        await control.files.make_directory(volume, name, VolumeAttributes())
    with pytest.raises(FirkinError, match="more than can be answered"):
        await control.files.list(volume, VolumePath("/"))
