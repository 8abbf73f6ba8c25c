"""Obligations of a backend: files are what was written, named as they were named."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from firkin.law.backend import FilesystemControl, ProcessControl
from firkin.law.capabilities import Capabilities, CapabilityName
from firkin.law.errors import (
    AlreadyExists,
    FileFault,
    FilesystemFailure,
    InvalidSpec,
    NotFound,
    ResourceKind,
    UnsupportedCapability,
)
from firkin.law.files import (
    CopyOptions,
    FileEvent,
    FileEventKind,
    FileType,
    ListOptions,
    ReadOptions,
    SandboxPath,
    WatchOptions,
    WriteOptions,
)
from firkin.law.ids import SandboxId
from firkin.law.processes import Command
from firkin.law.sandboxes import SandboxInfo
from firkin.testing.backend_suite import PATIENCE_S, BackendSuite

_WORK = SandboxPath("/tmp/work")


def _file(name: str = "contract.txt") -> SandboxPath:
    return _WORK.below(name)


async def read_all(
    files: FilesystemControl, sandbox_id: SandboxId, path: SandboxPath, options: ReadOptions | None = None
) -> bytes:
    _, chunks = await files.open_read(sandbox_id, path, options or ReadOptions())
    return b"".join([chunk async for chunk in chunks])


class FileObligations(BackendSuite):
    async def test_what_is_written_is_read_back_and_measured(
        self, files: FilesystemControl, sandbox: SandboxInfo
    ) -> None:
        written = await files.write(sandbox.id, _file(), b"hello world\n", WriteOptions())
        assert (written.path, written.file_type, written.size_bytes) == (_file(), FileType.FILE, 12)
        assert written.mode == 0o644
        assert (written.uid, written.owner) == (0, "root")
        assert await files.stat(sandbox.id, _file()) == written
        assert await read_all(files, sandbox.id, _file()) == b"hello world\n"

    async def test_an_empty_file_is_a_file(self, files: FilesystemControl, sandbox: SandboxInfo) -> None:
        entry = await files.write(sandbox.id, _file(), b"", WriteOptions())
        assert (entry.file_type, entry.size_bytes) == (FileType.FILE, 0)
        assert await read_all(files, sandbox.id, _file()) == b""

    async def test_a_stream_of_megabytes_arrives_whole(self, files: FilesystemControl, sandbox: SandboxInfo) -> None:
        block = os.urandom(100_000)

        async def blocks() -> AsyncIterator[bytes]:
            for _ in range(30):
                yield block

        entry = await files.write(sandbox.id, _file(), blocks(), WriteOptions())
        assert entry.size_bytes == 3_000_000
        assert await read_all(files, sandbox.id, _file()) == block * 30

    async def test_ranges_are_read(self, files: FilesystemControl, sandbox: SandboxInfo) -> None:
        await files.write(sandbox.id, _file(), b"0123456789", WriteOptions())
        for offset, length, expected in ((3, 4, b"3456"), (8, None, b"89"), (20, 5, b""), (0, 0, b"")):
            assert await read_all(files, sandbox.id, _file(), ReadOptions(offset=offset, length=length)) == expected

    async def test_a_second_write_replaces_and_an_append_adds(
        self, files: FilesystemControl, sandbox: SandboxInfo
    ) -> None:
        await files.write(sandbox.id, _file(), b"long first text", WriteOptions())
        await files.write(sandbox.id, _file(), b"new", WriteOptions())
        entry = await files.write(sandbox.id, _file(), b"+more", WriteOptions(append=True))
        assert entry.size_bytes == 8
        assert await read_all(files, sandbox.id, _file()) == b"new+more"

    async def test_owner_mode_and_metadata_are_honoured(self, files: FilesystemControl, sandbox: SandboxInfo) -> None:
        options = WriteOptions(user=sandbox.default_user, mode=0o600, metadata={"k": "v"})
        entry = await files.write(sandbox.id, _file(), b"x", options)
        assert (entry.mode, entry.owner, entry.metadata) == (0o600, sandbox.default_user, {"k": "v"})
        assert (await files.stat(sandbox.id, _WORK)).owner == sandbox.default_user
        await files.chown(sandbox.id, _file(), "root")
        assert (await files.stat(sandbox.id, _file())).uid == 0

    async def test_set_id_and_sticky_bits_of_a_mode_are_kept(
        self, files: FilesystemControl, sandbox: SandboxInfo
    ) -> None:
        for mode in (0o4755, 0o2755, 0o1755, 0o6711):
            path = _file(f"{mode:o}")
            options = WriteOptions(user=sandbox.default_user, mode=mode)
            assert (await files.write(sandbox.id, path, b"x", options)).mode == mode
            assert (await files.write(sandbox.id, path, b"again", WriteOptions())).mode == mode
            assert (await files.write(sandbox.id, path, b"more", WriteOptions(append=True))).mode == mode
            assert (await files.stat(sandbox.id, path)).mode == mode

    async def test_an_empty_owner_is_refused_and_is_not_root(
        self, files: FilesystemControl, sandbox: SandboxInfo
    ) -> None:
        await files.write(sandbox.id, _file(), b"x", WriteOptions(user=sandbox.default_user))
        for attempt in (
            files.mkdir(sandbox.id, _file("b"), user=""),
            files.rename(sandbox.id, _file(), _file("b"), user=""),
            files.chown(sandbox.id, _file(), ""),
        ):
            with pytest.raises(InvalidSpec):
                await attempt
        assert (await files.stat(sandbox.id, _file())).owner == sandbox.default_user

    async def test_a_write_for_an_unknown_user_writes_nothing(
        self, files: FilesystemControl, sandbox: SandboxInfo
    ) -> None:
        with pytest.raises(NotFound) as caught:
            await files.write(sandbox.id, _file(), b"x", WriteOptions(user="nobody-of-that-name"))
        assert caught.value.resource is ResourceKind.USER
        with pytest.raises(NotFound):
            await files.stat(sandbox.id, _WORK)

    async def test_missing_parents_are_made_only_when_allowed(
        self, files: FilesystemControl, sandbox: SandboxInfo
    ) -> None:
        with pytest.raises(NotFound):
            await files.write(sandbox.id, _file("a/b"), b"x", WriteOptions(create_parents=False))
        await files.write(sandbox.id, _file("a/b"), b"x", WriteOptions())
        assert (await files.stat(sandbox.id, _file("a"))).file_type is FileType.DIRECTORY

    async def test_what_is_missing_is_not_found_as_a_file(self, files: FilesystemControl, sandbox: SandboxInfo) -> None:
        missing = SandboxPath("/tmp/missing")
        for verb in (
            files.stat(sandbox.id, missing),
            files.list(sandbox.id, missing, ListOptions()),
            files.open_read(sandbox.id, missing, ReadOptions()),
            files.rename(sandbox.id, missing, _file()),
            files.remove(sandbox.id, missing),
            files.chown(sandbox.id, missing, "root"),
        ):
            with pytest.raises(NotFound) as caught:
                await verb
            assert caught.value.resource is ResourceKind.FILE
            assert caught.value.id == missing

    @pytest.mark.parametrize(
        "name", ["tab\there", "new\nline", " spaces ", "\udcff\udcfe", "ünï", "-rf", "*", "a" * 255]
    )
    async def test_odd_names_are_names(self, files: FilesystemControl, sandbox: SandboxInfo, name: str) -> None:
        path = _file(name)
        await files.write(sandbox.id, path, b"odd", WriteOptions())
        [entry] = await files.list(sandbox.id, _WORK, ListOptions())
        assert (entry.name, entry.path) == (name, path)
        assert await read_all(files, sandbox.id, path) == b"odd"
        await files.remove(sandbox.id, path)
        assert list(await files.list(sandbox.id, _WORK, ListOptions())) == []

    async def test_a_name_too_long_is_a_typed_failure(self, files: FilesystemControl, sandbox: SandboxInfo) -> None:
        with pytest.raises(FilesystemFailure) as caught:
            await files.write(sandbox.id, _file("a" * 256), b"x", WriteOptions())
        assert caught.value.fault is FileFault.NAME_TOO_LONG

    async def test_a_directory_is_not_read_or_written(self, files: FilesystemControl, sandbox: SandboxInfo) -> None:
        await files.mkdir(sandbox.id, _WORK)
        for verb in (
            files.write(sandbox.id, _WORK, b"x", WriteOptions()),
            files.open_read(sandbox.id, _WORK, ReadOptions()),
        ):
            with pytest.raises(FilesystemFailure) as caught:
                await verb
            assert caught.value.fault is FileFault.IS_A_DIRECTORY

    async def test_listing_is_depth_first_in_name_order(self, files: FilesystemControl, sandbox: SandboxInfo) -> None:
        for name in ("b", "a/y", "a/x/deep"):
            await files.write(sandbox.id, _file(name), b"", WriteOptions())

        async def names(depth: int | None) -> list[str]:
            entries = await files.list(sandbox.id, _WORK, ListOptions(depth=depth))
            return [entry.path.removeprefix(_WORK + "/") for entry in entries]

        assert await names(1) == ["a", "b"]
        assert await names(2) == ["a", "a/x", "a/y", "b"]
        assert await names(None) == ["a", "a/x", "a/x/deep", "a/y", "b"]
        with pytest.raises(FilesystemFailure) as caught:
            await files.list(sandbox.id, _file("b"), ListOptions())
        assert caught.value.fault is FileFault.NOT_A_DIRECTORY

    async def test_directories_are_made_once(self, files: FilesystemControl, sandbox: SandboxInfo) -> None:
        entry = await files.mkdir(sandbox.id, _WORK, user=sandbox.default_user)
        assert (entry.file_type, entry.mode, entry.owner) == (FileType.DIRECTORY, 0o755, sandbox.default_user)
        with pytest.raises(AlreadyExists):
            await files.mkdir(sandbox.id, _WORK)
        with pytest.raises(NotFound):
            await files.mkdir(sandbox.id, _file("a/b"))
        await files.mkdir(sandbox.id, _file("a/b"), parents=True)
        await files.write(sandbox.id, _file("file"), b"", WriteOptions())
        with pytest.raises(FilesystemFailure) as caught:
            await files.mkdir(sandbox.id, _file("file"))
        assert caught.value.fault is FileFault.NOT_A_DIRECTORY

    async def test_rename_replaces_a_file_and_makes_parents(
        self, files: FilesystemControl, sandbox: SandboxInfo
    ) -> None:
        await files.write(sandbox.id, _file("from"), b"new", WriteOptions())
        await files.write(sandbox.id, _file("to"), b"old", WriteOptions())
        assert (await files.rename(sandbox.id, _file("from"), _file("to"))).size_bytes == 3
        assert await read_all(files, sandbox.id, _file("to")) == b"new"
        entry = await files.rename(sandbox.id, _file("to"), _file("deep/er"))
        assert entry.path == _file("deep/er")
        await files.mkdir(sandbox.id, _file("directory"))
        with pytest.raises(FilesystemFailure):
            await files.rename(sandbox.id, _file("deep/er"), _file("directory"))

    async def test_remove_takes_trees_only_when_told(self, files: FilesystemControl, sandbox: SandboxInfo) -> None:
        await files.write(sandbox.id, _file("a/b"), b"", WriteOptions())
        with pytest.raises(FilesystemFailure) as caught:
            await files.remove(sandbox.id, _WORK)
        assert caught.value.fault is FileFault.NOT_EMPTY
        await files.remove(sandbox.id, _WORK, recursive=True)
        with pytest.raises(NotFound):
            await files.stat(sandbox.id, _WORK)


class LinkObligations(BackendSuite):
    async def test_a_symlink_is_described_and_never_followed_by_remove(
        self, files: FilesystemControl, processes: ProcessControl, sandbox: SandboxInfo
    ) -> None:
        await files.write(sandbox.id, _file("target"), b"12345", WriteOptions())
        text = "cd /tmp/work && ln -s target good && ln -s nowhere broken && ln -s loop loop && ln -s /tmp/work dir"
        assert (await processes.run(sandbox.id, Command(mode=Command.shell(text).mode, user="root"))).ok
        good = await files.stat(sandbox.id, _file("good"))
        assert good.file_type is FileType.SYMLINK
        assert (good.symlink_target, good.target_type) == (_file("target"), FileType.FILE)
        for name in ("broken", "loop"):
            entry = await files.stat(sandbox.id, _file(name))
            assert (entry.file_type, entry.symlink_target, entry.target_type) == (FileType.SYMLINK, None, None)
        assert await read_all(files, sandbox.id, _file("good")) == b"12345"
        listed = await files.list(sandbox.id, _file("dir"), ListOptions())
        assert "good" in [entry.name for entry in listed]
        for name in ("good", "broken", "loop", "dir"):
            await files.remove(sandbox.id, _file(name), recursive=True)
        assert [entry.name for entry in await files.list(sandbox.id, _WORK, ListOptions())] == ["target"]

    async def test_dots_do_not_leave_the_sandbox(self, files: FilesystemControl, sandbox: SandboxInfo) -> None:
        path = SandboxPath("/../../../../../tmp/inside")
        await files.write(sandbox.id, path, b"x", WriteOptions())
        assert await read_all(files, sandbox.id, SandboxPath("/tmp/inside")) == b"x"


class CopyObligations(BackendSuite):
    async def test_a_tree_goes_in_and_comes_out_unchanged(
        self, files: FilesystemControl, sandbox: SandboxInfo, tmp_path: Path
    ) -> None:
        source = tmp_path / "source"
        (source / "sub").mkdir(parents=True)
        (source / "sub" / "tool").write_bytes(b"#!/bin/sh\n")
        (source / "sub" / "tool").chmod(0o755)
        (source / "empty").touch()
        (source / "link").symlink_to("sub/tool")
        await files.copy_in(sandbox.id, source, _file("tree"), CopyOptions())
        assert (await files.stat(sandbox.id, _file("tree/sub/tool"))).mode == 0o755
        assert (await files.stat(sandbox.id, _file("tree/link"))).file_type is FileType.SYMLINK
        target = tmp_path / "target"
        await files.copy_out(sandbox.id, _file("tree"), target, CopyOptions())
        assert (target / "sub" / "tool").read_bytes() == b"#!/bin/sh\n"
        assert (target / "sub" / "tool").stat().st_mode & 0o777 == 0o755
        assert (target / "empty").stat().st_size == 0
        assert os.readlink(target / "link") == "sub/tool" or (target / "link").is_symlink()

    async def test_nothing_is_overwritten_unless_told(
        self, files: FilesystemControl, sandbox: SandboxInfo, tmp_path: Path
    ) -> None:
        host = tmp_path / "file"
        host.write_bytes(b"from host")
        await files.write(sandbox.id, _file(), b"inside", WriteOptions())
        with pytest.raises(AlreadyExists):
            await files.copy_in(sandbox.id, host, _file(), CopyOptions())
        assert await read_all(files, sandbox.id, _file()) == b"inside"
        with pytest.raises(AlreadyExists):
            await files.copy_out(sandbox.id, _file(), host, CopyOptions())
        assert host.read_bytes() == b"from host"
        await files.copy_in(sandbox.id, host, _file(), CopyOptions(overwrite=True, user=sandbox.default_user))
        assert await read_all(files, sandbox.id, _file()) == b"from host"
        assert (await files.stat(sandbox.id, _file())).owner == sandbox.default_user
        await files.write(sandbox.id, _file(), b"inside again", WriteOptions())
        await files.copy_out(sandbox.id, _file(), host, CopyOptions(overwrite=True))
        assert host.read_bytes() == b"inside again"


class WatchObligations(BackendSuite):
    async def test_changes_below_a_watched_directory_are_told(
        self, files: FilesystemControl, capabilities: Capabilities, sandbox: SandboxInfo
    ) -> None:
        await files.mkdir(sandbox.id, _WORK)
        if not capabilities.supports(CapabilityName.FILESYSTEM_WATCH):
            with pytest.raises(UnsupportedCapability) as caught:
                await files.watch(sandbox.id, _WORK, WatchOptions())
            assert caught.value.capability is CapabilityName.FILESYSTEM_WATCH
            return
        watch = await files.watch(sandbox.id, _WORK, WatchOptions())
        await files.write(sandbox.id, _file("a"), b"1", WriteOptions())
        await files.rename(sandbox.id, _file("a"), _file("b"))
        await files.remove(sandbox.id, _file("b"))
        events = [(event.kind, event.name) for event in await watch.drain()]
        for expected in (
            (FileEventKind.CREATE, "a"),
            (FileEventKind.WRITE, "a"),
            (FileEventKind.RENAME, "a"),
            (FileEventKind.CREATE, "b"),
            (FileEventKind.REMOVE, "b"),
        ):
            assert expected in events
        assert events.index((FileEventKind.CREATE, "a")) < events.index((FileEventKind.RENAME, "a"))
        assert await watch.drain() == []
        await watch.aclose()

    async def test_a_recursive_watch_sees_new_directories_and_entries(
        self, files: FilesystemControl, capabilities: Capabilities, sandbox: SandboxInfo
    ) -> None:
        if not capabilities.supports(CapabilityName.FILESYSTEM_WATCH):
            pytest.skip(str(capabilities.refusal(CapabilityName.FILESYSTEM_WATCH)))
        await files.mkdir(sandbox.id, _WORK)
        watch = await files.watch(sandbox.id, _WORK, WatchOptions(recursive=True, include_entry=True))
        await files.write(sandbox.id, _file("new/file"), b"12", WriteOptions())
        seen: list[FileEvent] = []
        async with asyncio.timeout(PATIENCE_S):
            while not any(event.name == "new/file" and event.entry is not None for event in seen):
                seen.append(await anext(watch))
        await watch.aclose()
        assert "new" in {event.name for event in seen}

    async def test_only_a_directory_is_watched(
        self, files: FilesystemControl, capabilities: Capabilities, sandbox: SandboxInfo
    ) -> None:
        if not capabilities.supports(CapabilityName.FILESYSTEM_WATCH):
            pytest.skip(str(capabilities.refusal(CapabilityName.FILESYSTEM_WATCH)))
        await files.write(sandbox.id, _file(), b"", WriteOptions())
        with pytest.raises(FilesystemFailure) as caught:
            await files.watch(sandbox.id, _file(), WatchOptions())
        assert caught.value.fault is FileFault.NOT_A_DIRECTORY
        with pytest.raises(NotFound):
            await files.watch(sandbox.id, _file("missing"), WatchOptions())
