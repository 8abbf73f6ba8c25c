"""Files inside sandboxes, by sandbox id: capability checked, then asked of the agent."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Sequence
from pathlib import Path

from firkin.engine.guest_files import GuestFiles
from firkin.engine.guest_link import GuestLink
from firkin.engine.node import Node
from firkin.law.capabilities import CapabilityName
from firkin.law.events import FileChanged
from firkin.law.files import (
    CopyOptions,
    FileEntry,
    FileEventStream,
    ListOptions,
    ReadOptions,
    SandboxPath,
    WatchOptions,
    WriteOptions,
)
from firkin.law.files import FileEventKind as _Change
from firkin.law.ids import SandboxId

_C = CapabilityName
_WATCH = "watch files"


class LocalFiles:
    """The `FilesystemControl` of the engine."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def stat(self, sandbox_id: SandboxId, path: SandboxPath) -> FileEntry:
        return await (await self._enter(sandbox_id, "inspect a file", _C.FILESYSTEM_LIST)).stat(path)

    async def list(self, sandbox_id: SandboxId, path: SandboxPath, options: ListOptions) -> Sequence[FileEntry]:
        return await (await self._enter(sandbox_id, "list files", _C.FILESYSTEM_LIST)).list(path, options)

    async def open_read(
        self, sandbox_id: SandboxId, path: SandboxPath, options: ReadOptions
    ) -> tuple[FileEntry, AsyncIterator[bytes]]:
        return await (await self._enter(sandbox_id, "read a file", _C.FILESYSTEM_READ)).open_read(path, options)

    async def write(
        self, sandbox_id: SandboxId, path: SandboxPath, data: bytes | AsyncIterable[bytes], options: WriteOptions
    ) -> FileEntry:
        files = await self._enter(sandbox_id, "write a file", _C.FILESYSTEM_WRITE)
        entry = await files.write(path, data, options)
        self._changed(sandbox_id, path, _Change.WRITE)
        return entry

    async def mkdir(
        self, sandbox_id: SandboxId, path: SandboxPath, *, parents: bool = False, user: str | None = None
    ) -> FileEntry:
        files = await self._enter(sandbox_id, "make a directory", _C.FILESYSTEM_WRITE)
        entry = await files.mkdir(path, parents=parents, user=user)
        self._changed(sandbox_id, path, _Change.CREATE)
        return entry

    async def rename(
        self, sandbox_id: SandboxId, source: SandboxPath, target: SandboxPath, *, user: str | None = None
    ) -> FileEntry:
        files = await self._enter(sandbox_id, "rename a file", _C.FILESYSTEM_WRITE)
        entry = await files.rename(source, target, user=user)
        self._changed(sandbox_id, source, _Change.RENAME)
        self._changed(sandbox_id, target, _Change.CREATE)
        return entry

    async def remove(self, sandbox_id: SandboxId, path: SandboxPath, *, recursive: bool = False) -> None:
        await (await self._enter(sandbox_id, "remove a file", _C.FILESYSTEM_WRITE)).remove(path, recursive=recursive)
        self._changed(sandbox_id, path, _Change.REMOVE)

    async def chown(self, sandbox_id: SandboxId, path: SandboxPath, user: str) -> None:
        await (await self._enter(sandbox_id, "change a file's owner", _C.FILESYSTEM_WRITE)).chown(path, user)
        self._changed(sandbox_id, path, _Change.CHMOD)

    async def copy_in(self, sandbox_id: SandboxId, host: Path, guest: SandboxPath, options: CopyOptions) -> FileEntry:
        entry = await (await self._enter(sandbox_id, "copy in", _C.FILESYSTEM_COPY_IN)).copy_in(host, guest, options)
        self._changed(sandbox_id, guest, _Change.WRITE)
        return entry

    async def copy_out(self, sandbox_id: SandboxId, guest: SandboxPath, host: Path, options: CopyOptions) -> None:
        await (await self._enter(sandbox_id, "copy out", _C.FILESYSTEM_COPY_OUT)).copy_out(guest, host, options)

    async def watch(self, sandbox_id: SandboxId, path: SandboxPath, options: WatchOptions) -> FileEventStream:
        files = await self._enter(sandbox_id, _WATCH, _C.FILESYSTEM_WATCH)
        if not options.held:
            return await files.watch(path, options)

        async def reach() -> GuestLink:
            return (await self._node.links.enter(sandbox_id, _WATCH, _C.FILESYSTEM_WATCH)).link

        return await files.watch_held(path, options, reach)

    def _changed(self, sandbox_id: SandboxId, path: SandboxPath, change: _Change) -> None:
        self._node.events.publish(FileChanged(sandbox_id, path, change))

    async def _enter(self, sandbox_id: SandboxId, operation: str, need: CapabilityName) -> GuestFiles:
        return (await self._node.links.enter(sandbox_id, operation, need)).files
