"""Files inside sandboxes, by sandbox id: capability checked, then asked of the agent."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Sequence
from pathlib import Path

from firkin.engine.guest_files import GuestFiles
from firkin.engine.node import Node
from firkin.law.capabilities import CapabilityName
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
from firkin.law.ids import SandboxId

_C = CapabilityName


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
        return await (await self._enter(sandbox_id, "write a file", _C.FILESYSTEM_WRITE)).write(path, data, options)

    async def mkdir(
        self, sandbox_id: SandboxId, path: SandboxPath, *, parents: bool = False, user: str | None = None
    ) -> FileEntry:
        files = await self._enter(sandbox_id, "make a directory", _C.FILESYSTEM_WRITE)
        return await files.mkdir(path, parents=parents, user=user)

    async def rename(
        self, sandbox_id: SandboxId, source: SandboxPath, target: SandboxPath, *, user: str | None = None
    ) -> FileEntry:
        return await (await self._enter(sandbox_id, "rename a file", _C.FILESYSTEM_WRITE)).rename(
            source, target, user=user
        )

    async def remove(self, sandbox_id: SandboxId, path: SandboxPath, *, recursive: bool = False) -> None:
        await (await self._enter(sandbox_id, "remove a file", _C.FILESYSTEM_WRITE)).remove(path, recursive=recursive)

    async def chown(self, sandbox_id: SandboxId, path: SandboxPath, user: str) -> None:
        await (await self._enter(sandbox_id, "change a file's owner", _C.FILESYSTEM_WRITE)).chown(path, user)

    async def copy_in(self, sandbox_id: SandboxId, host: Path, guest: SandboxPath, options: CopyOptions) -> FileEntry:
        return await (await self._enter(sandbox_id, "copy in", _C.FILESYSTEM_COPY_IN)).copy_in(host, guest, options)

    async def copy_out(self, sandbox_id: SandboxId, guest: SandboxPath, host: Path, options: CopyOptions) -> None:
        await (await self._enter(sandbox_id, "copy out", _C.FILESYSTEM_COPY_OUT)).copy_out(guest, host, options)

    async def watch(self, sandbox_id: SandboxId, path: SandboxPath, options: WatchOptions) -> FileEventStream:
        return await (await self._enter(sandbox_id, "watch files", _C.FILESYSTEM_WATCH)).watch(path, options)

    async def _enter(self, sandbox_id: SandboxId, operation: str, need: CapabilityName) -> GuestFiles:
        return (await self._node.links.enter(sandbox_id, operation, need)).files
