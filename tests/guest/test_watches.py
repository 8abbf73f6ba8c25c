"""Changes of files are told once, in order, under the right name."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from firkin.engine.guest_files import GuestFiles
from firkin.engine.guest_link import GuestLink
from firkin.engine.guest_processes import GuestProcesses
from firkin.law.errors import FileFault, FilesystemFailure, NotFound
from firkin.law.files import FileEvent, FileType, SandboxPath, WatchOptions, WriteOptions
from firkin.law.processes import Command
from tests.guest.conftest import RunningAgent

RECURSIVE = WatchOptions(recursive=True)


@pytest.fixture
def box(tmp_path: Path) -> SandboxPath:
    folder = tmp_path / "box"
    folder.mkdir()
    return SandboxPath(str(folder))


def told(events: list[FileEvent]) -> list[str]:
    return [f"{event.kind.value} {event.name}" for event in events]


async def test_the_life_of_a_file_is_told_in_order(files: GuestFiles, box: SandboxPath) -> None:
    watch = await files.watch(box, WatchOptions())
    path = Path(box, "a")
    path.write_bytes(b"x")
    path.chmod(0o600)
    path.rename(Path(box, "b"))
    Path(box, "b").unlink()
    events = ["create a", "write a", "chmod a", "rename a", "create b", "remove b"]
    assert told(await watch.drain()) == events
    assert await watch.drain() == []
    await watch.aclose()


async def test_events_come_without_being_drained(files: GuestFiles, box: SandboxPath) -> None:
    watch = await files.watch(box, WatchOptions())
    os.mknod(box.below("a"))
    async with asyncio.timeout(10):
        assert told([await anext(watch)]) == ["create a"]
    await watch.aclose()


@pytest.mark.thorough
async def test_a_write_by_a_program_is_told_as_soon_as_it_has_ended(
    files: GuestFiles, processes: GuestProcesses, box: SandboxPath
) -> None:
    watch = await files.watch(box, WatchOptions())
    for _ in range(20):
        await processes.run(Command.shell(f"echo x > {box}/a; rm {box}/a"))
        assert told(await watch.drain()) == ["create a", "write a", "remove a"]
    await watch.aclose()


async def test_entries_come_along_when_asked_for(files: GuestFiles, box: SandboxPath) -> None:
    watch = await files.watch(box, WatchOptions(include_entry=True))
    await files.write(box.below("a"), b"123", WriteOptions())
    drained = await watch.drain()
    os.unlink(box.below("a"))
    events = {(event.kind.value, event.name): event.entry for event in [*drained, *await watch.drain()]}
    entry = events["write", "a"]
    assert entry is not None
    assert (entry.path, entry.file_type, entry.size_bytes) == (box.below("a"), FileType.FILE, 3)
    assert events["remove", "a"] is None
    await watch.aclose()


async def test_only_a_recursive_watch_looks_below(files: GuestFiles, box: SandboxPath) -> None:
    os.makedirs(box.below("x/y"))
    flat, deep = await files.watch(box, WatchOptions()), await files.watch(box, RECURSIVE)
    os.mknod(box.below("x/y/a"))
    assert told(await flat.drain()) == []
    assert told(await deep.drain()) == ["create x/y/a"]
    await flat.aclose()
    os.mknod(box.below("b"))
    assert told(await deep.drain()) == ["create b"]
    await deep.aclose()


async def test_what_is_made_in_a_new_directory_is_told_once(files: GuestFiles, box: SandboxPath) -> None:
    watch = await files.watch(box, RECURSIVE)
    os.makedirs(box.below("x/y/z"))
    os.mknod(box.below("x/a"))
    os.mknod(box.below("x/y/z/b"))
    events = told(await watch.drain())
    assert sorted(events) == ["create x", "create x/a", "create x/y", "create x/y/z", "create x/y/z/b"]
    os.mknod(box.below("x/y/z/c"))
    os.unlink(box.below("x/a"))
    assert told(await watch.drain()) == ["create x/y/z/c", "remove x/a"]
    await watch.aclose()


async def test_a_racing_tree_is_told_completely(files: GuestFiles, processes: GuestProcesses, box: SandboxPath) -> None:
    watch = await files.watch(box, RECURSIVE)
    script = f"cd {box}; for i in 1 2 3 4 5 6 7 8 9; do mkdir -p $i/a/b; : > $i/f; : > $i/a/f; : > $i/a/b/f; done"
    await processes.run(Command.shell(script))
    created = [event for event in told(await watch.drain()) if event.startswith("create")]
    expected = [f"create {i}{rest}" for i in range(1, 10) for rest in ("", "/a", "/a/b", "/f", "/a/f", "/a/b/f")]
    assert sorted(created) == sorted(expected)
    await watch.aclose()


async def test_a_renamed_directory_is_known_by_its_new_name(files: GuestFiles, box: SandboxPath) -> None:
    os.makedirs(box.below("old/sub"))
    watch = await files.watch(box, RECURSIVE)
    os.rename(box.below("old"), box.below("new"))
    os.mknod(box.below("new/sub/a"))
    assert told(await watch.drain()) == ["rename old", "create new", "create new/sub/a"]
    await watch.aclose()


async def test_a_directory_that_moved_away_is_no_longer_told_of(
    files: GuestFiles, box: SandboxPath, tmp_path: Path
) -> None:
    os.makedirs(box.below("x/sub"))
    watch = await files.watch(box, RECURSIVE)
    os.rename(box.below("x"), tmp_path / "away")
    assert told(await watch.drain()) == ["rename x"]
    seen = ["?"]
    async with asyncio.timeout(10):
        while seen:  # until the agent has given the directory up
            os.mknod(tmp_path / "away" / "sub" / "a")
            os.unlink(tmp_path / "away" / "sub" / "a")
            seen = told(await watch.drain())
    await watch.aclose()


async def test_the_end_of_the_watched_directory_is_told(files: GuestFiles, box: SandboxPath) -> None:
    watch = await files.watch(box, WatchOptions())
    os.rmdir(box)
    assert told(await watch.drain()) == ["remove ."]
    await watch.aclose()


async def test_two_watches_of_one_directory_are_independent(files: GuestFiles, box: SandboxPath) -> None:
    first, second = await files.watch(box, WatchOptions()), await files.watch(box, WatchOptions())
    os.mknod(box.below("a"))
    assert told(await first.drain()) == told(await second.drain()) == ["create a"]
    await first.aclose()
    os.unlink(box.below("a"))
    assert told(await second.drain()) == ["remove a"]
    await second.aclose()


async def test_all_watches_share_one_inotify_instance(files: GuestFiles, box: SandboxPath, agent: RunningAgent) -> None:
    watches = [await files.watch(box, WatchOptions()) for _ in range(200)]
    fds = os.listdir(f"/proc/{agent.pid}/fd")
    targets = [os.readlink(f"/proc/{agent.pid}/fd/{fd}") for fd in fds]
    assert targets.count("anon_inode:inotify") == 1
    for watch in watches:
        await watch.aclose()


@pytest.mark.thorough
async def test_a_burst_of_changes_is_told_completely(files: GuestFiles, box: SandboxPath) -> None:
    watch = await files.watch(box, WatchOptions())
    for i in range(5000):
        os.mknod(box.below(str(i)))
    assert told(await watch.drain()) == [f"create {i}" for i in range(5000)]
    await watch.aclose()


@pytest.mark.slow
async def test_a_burst_that_many_watch_is_told_to_all_of_them(
    files: GuestFiles, processes: GuestProcesses, box: SandboxPath
) -> None:
    watches = [await files.watch(box, WatchOptions()) for _ in range(128)]
    output = await processes.stream(Command.argv("sleep", "60"))
    for i in range(3000):
        os.mknod(box.below(str(i)))
    expected = [f"create {i}" for i in range(3000)]
    for watch in watches:
        assert told(await watch.drain()) == expected
    os.unlink(box.below("0"))
    assert told([await anext(watches[0])]) == ["remove 0"]
    for watch in watches:
        await watch.aclose()
    await output.aclose()


async def change(link: GuestLink, names: tuple[str, str], times: int) -> None:
    """So many changes, of two files in turn: the kernel tells of a second one to the same only once."""
    for done in range(times):
        os.chmod(names[done % 2], 0o600)
        if done % 1000 == 999:
            await link.call("ping")  # the kernel's queue is short: let the agent have a turn


@pytest.mark.slow
async def test_sixty_thousand_changes_wait_until_they_are_asked_for(
    files: GuestFiles, link: GuestLink, box: SandboxPath
) -> None:
    names = box.below("a"), box.below("b")
    for name in names:
        os.mknod(name)
    watch = await files.watch(box, WatchOptions(include_entry=True))
    await change(link, names, 60_000)
    first, left = await watch.page()
    assert (len(first) + left, len(first) <= 500) == (60_000, True)
    os.mknod(box.below("later"))
    events = first + await watch.drain()
    assert told(events) == ["chmod a", "chmod b"] * 30_000 + ["create later"]
    assert all(event.entry is not None for event in events)
    assert await watch.drain() == []
    await watch.aclose()


@pytest.mark.slow
async def test_what_is_too_much_is_told_as_a_loss_after_what_was_kept(
    files: GuestFiles, link: GuestLink, box: SandboxPath
) -> None:
    names = box.below("a" * 240), box.below("b" * 240)
    for name in names:
        os.mknod(name)
    watch = await files.watch(box, WatchOptions())
    await change(link, names, 100_000)
    other = await files.watch(box, WatchOptions())
    assert 80_000 < len(await watch.drain()) < 100_000
    for _ in range(2):
        with pytest.raises(FilesystemFailure) as caught:
            await watch.drain()
        assert caught.value.fault is FileFault.LIMIT
    os.mknod(box.below("more"))
    assert told(await other.drain()) == ["create more"]
    await watch.aclose()
    await other.aclose()


async def test_a_file_uploaded_into_directories_made_for_it_is_told_as_written(
    files: GuestFiles, box: SandboxPath
) -> None:
    watch = await files.watch(box, RECURSIVE)
    for name, size in (("small", 1), ("big", 5_000_000)):
        await files.write(box.below(f"{name}/deep/file"), bytes(size), WriteOptions())
        seen = [event for event in told(await watch.drain()) if not event.startswith("chmod")]
        assert seen[:3] == [f"create {name}", f"create {name}/deep", f"create {name}/deep/file"]
        assert set(seen[3:]) == {f"write {name}/deep/file"}
    await watch.aclose()


async def test_a_held_watch_outlives_its_connection(agent: RunningAgent, box: SandboxPath) -> None:
    links = [await agent.link()]

    async def reach() -> GuestLink:
        return links[-1]

    watch = await GuestFiles(links[0]).watch_held(box, WatchOptions(held=True), reach)
    os.mknod(box.below("a"))
    await links[0].aclose()
    os.mknod(box.below("b"))
    links.append(await agent.link())
    assert told(await watch.drain()) == ["create a", "create b"]
    await watch.aclose()
    with pytest.raises(NotFound):
        await watch.drain()
    await links[1].aclose()


async def test_a_change_is_not_lost_with_the_one_who_waited_for_it(files: GuestFiles, box: SandboxPath) -> None:
    watch = await files.watch(box, WatchOptions())
    for i in range(50):
        waiting = asyncio.create_task(anext(watch))
        await asyncio.sleep(0)
        os.mknod(box.below(str(i)))
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        event = await anext(watch) if i % 2 else (await watch.drain())[0]
        assert told([event]) == [f"create {i}"]
    await watch.aclose()


async def test_only_directories_are_watched(files: GuestFiles, box: SandboxPath) -> None:
    os.mknod(box.below("file"))
    with pytest.raises(FilesystemFailure) as caught:
        await files.watch(box.below("file"), WatchOptions())
    assert caught.value.fault is FileFault.NOT_A_DIRECTORY
    with pytest.raises(NotFound):
        await files.watch(box.below("none"), WatchOptions())


async def test_a_closed_watch_leaves_nothing_behind(
    files: GuestFiles, link: GuestLink, box: SandboxPath, agent: RunningAgent
) -> None:
    os.makedirs(box.below("a/b/c"))
    watch = await files.watch(box, RECURSIVE)
    await watch.aclose()
    await link.call("ping")
    [info] = [
        Path(f"/proc/{agent.pid}/fdinfo/{fd}").read_text()
        for fd in os.listdir(f"/proc/{agent.pid}/fd")
        if os.readlink(f"/proc/{agent.pid}/fd/{fd}") == "anon_inode:inotify"
    ]
    assert "inotify wd" not in info
