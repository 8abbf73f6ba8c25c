"""Files inside: written, read, listed and removed as asked, and nothing there makes the agent wait."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from firkin.engine.guest_files import GuestFiles
from firkin.engine.guest_link import GuestLink
from firkin.law.errors import (
    AlreadyExists,
    FileFault,
    FilesystemFailure,
    FirkinError,
    InvalidSpec,
    IoFailure,
    NotFound,
    ResourceKind,
)
from firkin.law.files import (
    CopyOptions,
    FileType,
    ListOptions,
    ReadOptions,
    SandboxPath,
    WriteOptions,
)
from tests.guest.conftest import RunningAgent, needs_root


@pytest.fixture
def box(tmp_path: Path) -> SandboxPath:
    folder = tmp_path / "box"
    folder.mkdir()
    return SandboxPath(str(folder))


async def content(files: GuestFiles, path: SandboxPath, options: ReadOptions | None = None) -> bytes:
    _, data = await files.open_read(path, options or ReadOptions())
    return b"".join([chunk async for chunk in data])


async def test_what_is_written_is_read(files: GuestFiles, box: SandboxPath) -> None:
    data = os.urandom(3_000_000)
    entry = await files.write(box.below("a"), data, WriteOptions())
    assert (entry.file_type, entry.size_bytes, entry.mode, entry.owner) == (FileType.FILE, 3_000_000, 0o644, "root")
    assert await content(files, box.below("a")) == data


async def test_a_stream_of_bytes_is_written(files: GuestFiles, box: SandboxPath) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for i in range(1000):
            yield b"%04d" % i

    await files.write(box.below("a"), pieces(), WriteOptions())
    assert await content(files, box.below("a")) == b"".join(b"%04d" % i for i in range(1000))


async def test_a_part_of_a_file_is_read(files: GuestFiles, box: SandboxPath) -> None:
    await files.write(box.below("a"), bytes(range(256)) * 1000, WriteOptions())
    assert await content(files, box.below("a"), ReadOptions(offset=255, length=3)) == b"\xff\x00\x01"
    assert await content(files, box.below("a"), ReadOptions(offset=255_998)) == b"\xfe\xff"
    assert await content(files, box.below("a"), ReadOptions(offset=999_999)) == b""
    assert await content(files, box.below("a"), ReadOptions(length=0)) == b""


async def test_closing_a_read_ends_it(
    files: GuestFiles, link: GuestLink, box: SandboxPath, agent: RunningAgent
) -> None:
    await files.write(box.below("a"), bytes(3_000_000), WriteOptions())
    _, data = await files.open_read(box.below("a"), ReadOptions())
    await anext(data)
    await data.aclose()  # type: ignore[attr-defined]
    await link.call("ping")
    await link.call("ping")
    assert str(box.below("a")) not in [
        os.readlink(f"/proc/{agent.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{agent.pid}/fd")
    ]


@needs_root
async def test_a_user_owns_what_is_written_and_the_directories_made_for_it(files: GuestFiles, box: SandboxPath) -> None:
    entry = await files.write(box.below("x/y/z"), b"", WriteOptions(user="nobody", mode=0o600))
    assert (entry.owner, entry.uid, entry.mode) == ("nobody", 65534, 0o600)
    for folder in ("x", "x/y"):
        made = await files.stat(box.below(folder))
        assert (made.owner, made.mode, made.file_type) == ("nobody", 0o755, FileType.DIRECTORY)


@needs_root
async def test_a_set_id_bit_outlives_the_change_of_the_owner(files: GuestFiles, box: SandboxPath) -> None:
    path = box.below("a")
    assert (await files.write(path, b"x", WriteOptions(user="nobody", mode=0o6755))).mode == 0o6755
    assert (await files.write(path, b"more", WriteOptions(append=True))).mode == 0o6755
    assert (await files.write(path, b"another", WriteOptions(user="nobody"))).mode == 0o6755


async def test_overwriting_keeps_the_mode(files: GuestFiles, box: SandboxPath) -> None:
    path = box.below("a")
    await files.write(path, b"long content", WriteOptions(mode=0o751))
    entry = await files.write(path, b"short", WriteOptions(mode=0o600))
    assert (entry.mode, await content(files, path)) == (0o751, b"short")


async def test_appending_appends(files: GuestFiles, box: SandboxPath) -> None:
    await files.write(box.below("a"), b"one", WriteOptions(append=True))
    await files.write(box.below("a"), b"two", WriteOptions(append=True))
    assert await content(files, box.below("a")) == b"onetwo"


async def test_missing_parents_are_made_only_when_asked(files: GuestFiles, box: SandboxPath) -> None:
    with pytest.raises(NotFound):
        await files.write(box.below("no/a"), b"", WriteOptions(create_parents=False))


async def test_metadata_is_kept_and_replaced(files: GuestFiles, box: SandboxPath) -> None:
    path = box.below("a")
    try:
        os.setxattr(box, "user.probe", b"1")
    except OSError:
        pytest.skip("this file system has no user attributes")
    assert (await files.write(path, b"", WriteOptions(metadata={"a": "1", "b": "ä"}))).metadata == {"a": "1", "b": "ä"}
    await files.write(path, b"", WriteOptions())
    assert (await files.stat(path)).metadata == {"a": "1", "b": "ä"}
    assert (await files.write(path, b"", WriteOptions(metadata={"c": "3"}))).metadata == {"c": "3"}


async def test_a_name_that_is_no_text_survives(files: GuestFiles, box: SandboxPath) -> None:
    path = box.below(os.fsdecode(b"\xff\xfe \n"))
    await files.write(path, b"x", WriteOptions())
    [entry] = await files.list(box, ListOptions())
    assert entry.path == path


async def test_lists_are_depth_first_in_name_order(files: GuestFiles, box: SandboxPath) -> None:
    for name in ("b/2/x", "b/1", "a", "c"):
        await files.write(box.below(name), b"", WriteOptions())
    os.symlink("b", box.below("d"))

    async def names(depth: int | None) -> list[str]:
        return [e.path.removeprefix(box + "/") for e in await files.list(box, ListOptions(depth=depth))]

    assert await names(1) == ["a", "b", "c", "d"]
    assert await names(2) == ["a", "b", "b/1", "b/2", "c", "d"]
    assert await names(None) == ["a", "b", "b/1", "b/2", "b/2/x", "c", "d"]


async def test_an_upload_that_is_not_over_is_in_no_list(files: GuestFiles, box: SandboxPath) -> None:
    os.mknod(box.below(".firkin-upload-0123456789abcdef"))
    os.mknod(box.below(".other"))
    assert [e.path for e in await files.list(box, ListOptions())] == [box.below(".other")]


async def test_a_symlink_that_is_listed_is_followed_and_keeps_its_name(files: GuestFiles, box: SandboxPath) -> None:
    await files.write(box.below("real/file"), b"", WriteOptions())
    os.symlink("real", box.below("link"))
    assert [e.path for e in await files.list(box.below("link"), ListOptions())] == [box.below("link/file")]


@pytest.mark.thorough
async def test_ten_thousand_files_are_listed_and_removed(files: GuestFiles, box: SandboxPath) -> None:
    for i in range(100):
        os.mkdir(f"{box}/{i}")
        for j in range(100):
            os.mknod(f"{box}/{i}/{j}")
    assert len(await files.list(box, ListOptions(depth=None))) == 10_100
    await files.remove(box, recursive=True)
    assert not os.path.exists(box)


async def test_symlinks_are_described_by_where_they_lead(files: GuestFiles, box: SandboxPath) -> None:
    await files.write(box.below("file"), b"12345", WriteOptions(mode=0o640))
    os.symlink("file", box.below("one"))
    os.symlink("one", box.below("two"))
    os.symlink("nowhere", box.below("broken"))
    os.symlink("loop", box.below("loop"))
    two = await files.stat(box.below("two"))
    assert (two.file_type, two.size_bytes, two.mode) == (FileType.SYMLINK, 3, 0o777)
    assert (two.symlink_target, two.target_type, two.target_mode) == (box.below("file"), FileType.FILE, 0o640)
    for name in ("broken", "loop"):
        entry = await files.stat(box.below(name))
        assert (entry.symlink_target, entry.target_type, entry.target_mode) == (None, None, None)


@pytest.mark.parametrize("write", [False, True])
async def test_a_fifo_never_makes_anybody_wait(files: GuestFiles, box: SandboxPath, write: bool) -> None:
    path = box.below("fifo")
    os.mkfifo(path)
    os.symlink("fifo", box.below("link"))
    for name in (path, box.below("link")):
        with pytest.raises(FilesystemFailure) as caught:
            await (files.write(name, b"x", WriteOptions()) if write else files.open_read(name, ReadOptions()))
        assert caught.value.fault is FileFault.NOT_REGULAR
    assert (await files.stat(path)).file_type is FileType.OTHER
    assert (await files.stat(box.below("link"))).target_type is FileType.OTHER


async def test_special_files_are_told_from_one_another(files: GuestFiles, box: SandboxPath) -> None:
    os.mkfifo(box.below("fifo"), 0o640)
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(box.below("socket"))
    [fifo, heard] = await files.list(box, ListOptions())
    assert (fifo.file_type, fifo.mode) == (FileType.OTHER, stat.S_IFIFO | 0o640)
    assert (heard.file_type, stat.S_IFMT(heard.mode)) == (FileType.OTHER, stat.S_IFSOCK)
    assert stat.S_ISCHR((await files.stat(SandboxPath("/dev/null"))).mode)
    assert (await files.stat(box)).mode == 0o755


@pytest.mark.thorough
@pytest.mark.parametrize("path", ["/dev/zero", "/dev/null", "/dev/tty", "/dev/ptmx"])
async def test_devices_are_not_read(files: GuestFiles, path: str) -> None:
    with pytest.raises((FilesystemFailure, NotFound)) as caught:
        await files.open_read(SandboxPath(path), ReadOptions())
    if isinstance(caught.value, FilesystemFailure):
        assert caught.value.fault is FileFault.NOT_REGULAR


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["self/maps", "1/environ", "self/mem", "thread-self/maps", "self/exe", "self/fd/0"])
async def test_the_agents_own_memory_and_files_are_not_served(files: GuestFiles, name: str) -> None:
    with pytest.raises(FilesystemFailure) as caught:
        await files.open_read(SandboxPath(f"/proc/{name}"), ReadOptions())
    assert caught.value.fault in (FileFault.PERMISSION, FileFault.TOO_MANY_LINKS)


async def test_links_under_proc_tell_nothing(files: GuestFiles) -> None:
    entry = await files.stat(SandboxPath("/proc/self/exe"))
    assert (entry.file_type, entry.symlink_target) == (FileType.SYMLINK, None)
    with pytest.raises(FilesystemFailure):
        await files.link_text(SandboxPath("/proc/self/exe"))


async def test_files_of_unknown_size_are_read_to_their_end(files: GuestFiles) -> None:
    assert b"MemTotal" in await content(files, SandboxPath("/proc/meminfo"))


async def test_missing_files_are_told(files: GuestFiles, box: SandboxPath) -> None:
    path = box.below("none")
    for attempt in (
        files.stat(path),
        files.open_read(path, ReadOptions()),
        files.list(path, ListOptions()),
        files.remove(path),
        files.chown(path, "root"),
        files.rename(path, box.below("x")),
        files.mkdir(path.below("deep")),
    ):
        with pytest.raises(NotFound) as caught:
            await attempt
        assert caught.value.resource is ResourceKind.FILE


async def test_directories_are_told_from_files(files: GuestFiles, box: SandboxPath) -> None:
    await files.write(box.below("file"), b"", WriteOptions())
    faults = []
    for attempt in (
        files.open_read(box, ReadOptions()),
        files.write(box, b"", WriteOptions()),
        files.list(box.below("file"), ListOptions()),
        files.write(box.below("file/x"), b"", WriteOptions()),
        files.mkdir(box.below("file")),
        files.remove(box),
    ):
        with pytest.raises(FilesystemFailure) as caught:
            await attempt
        faults.append(caught.value.fault)
    not_a, is_a = FileFault.NOT_A_DIRECTORY, FileFault.IS_A_DIRECTORY
    assert faults == [is_a, is_a, not_a, not_a, not_a, FileFault.NOT_EMPTY]


async def test_a_directory_is_made_once(files: GuestFiles, box: SandboxPath) -> None:
    entry = await files.mkdir(box.below("a/b"), parents=True)
    assert (entry.file_type, entry.mode) == (FileType.DIRECTORY, 0o755)
    with pytest.raises(AlreadyExists):
        await files.mkdir(box.below("a/b"), parents=True)


async def test_renaming_makes_parents_and_overwrites(files: GuestFiles, box: SandboxPath) -> None:
    await files.write(box.below("a"), b"new", WriteOptions())
    await files.write(box.below("x/b"), b"old", WriteOptions())
    entry = await files.rename(box.below("a"), box.below("x/b"))
    assert (entry.path, await content(files, box.below("x/b"))) == (box.below("x/b"), b"new")
    await files.rename(box.below("x"), box.below("y/z/x"))
    assert await content(files, box.below("y/z/x/b")) == b"new"


async def test_removing_follows_no_symlink(files: GuestFiles, box: SandboxPath) -> None:
    await files.write(box.below("kept/file"), b"", WriteOptions())
    os.mkdir(box.below("tree"))
    os.symlink(box.below("kept"), box.below("tree/link"))
    await files.remove(box.below("tree"), recursive=True)
    assert os.listdir(box) == ["kept"]
    assert os.listdir(box.below("kept")) == ["file"]


async def test_the_root_is_not_removed(files: GuestFiles) -> None:
    for path in ("/", "//", "/usr/..", "/."):
        with pytest.raises(InvalidSpec):
            await files.remove(SandboxPath(path), recursive=True)


async def test_a_full_disk_is_told(files: GuestFiles) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    with pytest.raises(FilesystemFailure) as caught:
        await files.write(SandboxPath("/dev/full"), b"x", WriteOptions())
    assert caught.value.fault is FileFault.NOT_REGULAR


async def test_too_long_a_name_is_told(files: GuestFiles, box: SandboxPath) -> None:
    with pytest.raises(FilesystemFailure) as caught:
        await files.write(box.below("x" * 300), b"", WriteOptions())
    assert caught.value.fault is FileFault.NAME_TOO_LONG


@needs_root
async def test_owners_change(files: GuestFiles, box: SandboxPath) -> None:
    await files.write(box.below("a"), b"", WriteOptions())
    await files.chown(box.below("a"), "nobody")
    assert (await files.stat(box.below("a"))).owner == "nobody"
    with pytest.raises(NotFound) as caught:
        await files.chown(box.below("a"), "nobody-knows")
    assert caught.value.resource is ResourceKind.USER


def tree(path: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for name in sorted(os.listdir(path)):
        one = path / name
        status = one.lstat()
        if stat.S_ISLNK(status.st_mode):
            found[name] = os.readlink(one)
        elif stat.S_ISDIR(status.st_mode):
            found[name] = (stat.S_IMODE(status.st_mode), tree(one))
        else:
            found[name] = (stat.S_IMODE(status.st_mode), one.read_bytes())
    return found


@pytest.mark.thorough
async def test_a_tree_goes_in_and_comes_out_the_same(files: GuestFiles, box: SandboxPath, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep" / "er").mkdir(parents=True)
    (source / "deep" / "er").chmod(0o705)
    (source / "big").write_bytes(os.urandom(2_500_000))
    (source / "run").write_bytes(b"#!/bin/sh\n")
    (source / "run").chmod(0o751)
    (source / "deep" / "link").symlink_to("../nowhere")
    await files.copy_in(source, box.below("in"), CopyOptions())
    assert tree(Path(box.below("in"))) == tree(source)
    await files.copy_out(box.below("in"), tmp_path / "out", CopyOptions())
    assert tree(tmp_path / "out") == tree(source)
    for again in (
        files.copy_in(source, box.below("in"), CopyOptions()),
        files.copy_out(box.below("in"), tmp_path / "out", CopyOptions()),
    ):
        with pytest.raises(AlreadyExists):
            await again
    (source / "run").chmod(0o700)
    await files.copy_in(source, box.below("in"), CopyOptions(overwrite=True))
    await files.copy_out(box.below("in"), tmp_path / "out", CopyOptions(overwrite=True))
    assert tree(tmp_path / "out") == tree(source)


async def test_copying_out_follows_no_symlink_on_the_host(files: GuestFiles, box: SandboxPath, tmp_path: Path) -> None:
    await files.write(box.below("dir/file"), b"from inside", WriteOptions())
    (tmp_path / "outside").mkdir()
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "dir").symlink_to(tmp_path / "outside")
    with pytest.raises(IoFailure):
        await files.copy_out(box, tmp_path / "target", CopyOptions(overwrite=True))
    assert os.listdir(tmp_path / "outside") == []


async def test_what_is_missing_on_the_host_is_told(files: GuestFiles, box: SandboxPath, tmp_path: Path) -> None:
    with pytest.raises(IoFailure):
        await files.copy_in(tmp_path / "none", box.below("x"), CopyOptions())
    with pytest.raises(IoFailure):
        await files.copy_out(box, tmp_path / "none" / "x", CopyOptions())


@pytest.mark.parametrize("name", ["map_files", "fd", "fdinfo", "task", "ns"])
async def test_nothing_below_the_agents_own_process_is_shown(files: GuestFiles, box: SandboxPath, name: str) -> None:
    link = box.below("link")
    os.symlink("/proc/self", link)
    for path in (SandboxPath(f"/proc/self/{name}"), link.below(name)):
        with pytest.raises(FirkinError, match="belongs to the agent"):
            await files.list(path, ListOptions())


async def test_what_is_below_the_agents_process_is_not_found_by_name_either(files: GuestFiles) -> None:
    with pytest.raises(FirkinError, match="belongs to the agent"):
        await files.stat(SandboxPath("/proc/self/fd/0"))
    assert (await files.stat(SandboxPath("/proc/self/fd"))).file_type is FileType.DIRECTORY


async def test_a_deep_list_leaves_out_what_is_below_the_agents_process(files: GuestFiles) -> None:
    listed = [str(entry.path) for entry in await files.list(SandboxPath("/proc/self"), ListOptions(depth=3))]
    assert "/proc/self/map_files" in listed
    assert [path for path in listed if path.startswith(("/proc/self/map_files/", "/proc/self/fd/"))] == []


async def test_a_list_follows_no_link_of_a_process(files: GuestFiles) -> None:
    with pytest.raises(FirkinError):
        await files.list(SandboxPath("/proc/self/root"), ListOptions())
