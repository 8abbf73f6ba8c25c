"""Files of one sandbox."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Sequence
from pathlib import Path

from firkin.law.backend import FilesystemControl, SandboxBackend
from firkin.law.capabilities import CapabilityName
from firkin.law.errors import FileFault, FilesystemFailure, NotFound
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
from firkin.runtime.required import required

_C = CapabilityName
MAX_READ_BYTES = 256 * 1024 * 1024


class SandboxFiles:
    """Paths are absolute. `user` names the owner of what is made; None means the sandbox's default user.

    Files are reached with root's rights whoever owns them; ``user="root"`` makes root's own.
    """

    def __init__(self, backend: SandboxBackend, sandbox_id: SandboxId, *, default_user: str | None = None) -> None:
        self._backend = backend
        self._sandbox_id = sandbox_id
        self._default_user = default_user

    async def read(self, path: str, *, offset: int = 0, length: int | None = None) -> bytes:
        """The bytes of a file. `FilesystemFailure` (`LIMIT`) above 256 MiB; `read_stream` has no limit."""
        parts, size = [], 0
        chunks = await self.read_stream(path, offset=offset, length=length)
        try:
            async for chunk in chunks:
                size += len(chunk)
                if size > MAX_READ_BYTES:
                    raise self._too_large(path)
                parts.append(chunk)
        finally:
            if isinstance(chunks, AsyncGenerator):
                await chunks.aclose()
        return b"".join(parts)

    async def read_text(self, path: str, *, encoding: str = "utf-8", errors: str = "strict") -> str:
        return (await self.read(path)).decode(encoding, errors)

    async def read_stream(self, path: str, *, offset: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        """The bytes as they come. Close the iterator when leaving early."""
        control = await self._control("read a file", _C.FILESYSTEM_READ)
        options = ReadOptions(offset=offset, length=length)
        _, chunks = await control.open_read(self._sandbox_id, SandboxPath(path), options)
        return chunks

    async def write(
        self,
        path: str,
        data: bytes | str | AsyncIterable[bytes],
        *,
        user: str | None = None,
        mode: int = 0o644,
    ) -> FileEntry:
        """Replace the file's content, making missing directories."""
        return await self._write(path, data, WriteOptions(user=await self._owner(user), mode=mode))

    async def append(self, path: str, data: bytes | str, *, user: str | None = None) -> FileEntry:
        """Add to the end of a file, which is made when it is missing."""
        return await self._write(path, data, WriteOptions(user=await self._owner(user), append=True))

    async def list(self, path: str, *, depth: int | None = 1) -> Sequence[FileEntry]:
        control = await self._control("list files", _C.FILESYSTEM_LIST)
        return await control.list(self._sandbox_id, SandboxPath(path), ListOptions(depth=depth))

    async def stat(self, path: str) -> FileEntry:
        control = await self._control("inspect a file", _C.FILESYSTEM_LIST)
        return await control.stat(self._sandbox_id, SandboxPath(path))

    async def exists(self, path: str) -> bool:
        try:
            await self.stat(path)
        except NotFound:
            return False
        return True

    async def mkdir(self, path: str, *, parents: bool = False, user: str | None = None) -> FileEntry:
        control = await self._control("make a directory", _C.FILESYSTEM_WRITE)
        owner = await self._owner(user)
        return await control.mkdir(self._sandbox_id, SandboxPath(path), parents=parents, user=owner)

    async def rename(self, source: str, target: str, *, user: str | None = None) -> FileEntry:
        """Give a file another name. `user` owns the directories that are made for it; the file keeps its owner."""
        control = await self._control("rename a file", _C.FILESYSTEM_WRITE)
        owner = await self._owner(user)
        return await control.rename(self._sandbox_id, SandboxPath(source), SandboxPath(target), user=owner)

    async def remove(self, path: str, *, recursive: bool = False) -> None:
        control = await self._control("remove a file", _C.FILESYSTEM_WRITE)
        await control.remove(self._sandbox_id, SandboxPath(path), recursive=recursive)

    async def chown(self, path: str, user: str) -> None:
        control = await self._control("change a file's owner", _C.FILESYSTEM_WRITE)
        await control.chown(self._sandbox_id, SandboxPath(path), user)

    async def copy_in(
        self, host: Path | str, guest: str, *, overwrite: bool = False, user: str | None = None
    ) -> FileEntry:
        """Copy a file or a directory of the host into the sandbox."""
        control = await self._control("copy in", _C.FILESYSTEM_COPY_IN)
        options = CopyOptions(overwrite=overwrite, user=await self._owner(user))
        return await control.copy_in(self._sandbox_id, Path(host), SandboxPath(guest), options)

    async def copy_out(self, guest: str, host: Path | str, *, overwrite: bool = False) -> None:
        control = await self._control("copy out", _C.FILESYSTEM_COPY_OUT)
        options = CopyOptions(overwrite=overwrite)
        await control.copy_out(self._sandbox_id, SandboxPath(guest), Path(host), options)

    async def watch(self, path: str, *, recursive: bool = False, include_entry: bool = False) -> FileEventStream:
        control = await self._control("watch files", _C.FILESYSTEM_WATCH)
        options = WatchOptions(recursive=recursive, include_entry=include_entry)
        return await control.watch(self._sandbox_id, SandboxPath(path), options)

    async def _write(self, path: str, data: bytes | str | AsyncIterable[bytes], options: WriteOptions) -> FileEntry:
        control = await self._control("write a file", _C.FILESYSTEM_WRITE)
        octets = data.encode() if isinstance(data, str) else data
        return await control.write(self._sandbox_id, SandboxPath(path), octets, options)

    async def _owner(self, user: str | None) -> str:
        """Who owns what is made. The record is asked once: a sandbox's default user never changes."""
        if user is not None:
            return user
        if self._default_user is None:
            self._default_user = (await self._backend.sandboxes.inspect(self._sandbox_id)).default_user
        return self._default_user

    def _too_large(self, path: str) -> FilesystemFailure:
        detail = f"{path!r} is larger than {MAX_READ_BYTES} bytes; read it as a stream or copy it out"
        return FilesystemFailure("read a file", FileFault.LIMIT, detail, sandbox_id=self._sandbox_id, path=path)

    async def _control(self, operation: str, capability: CapabilityName) -> FilesystemControl:
        return await required(self._backend, self._backend.filesystems, operation, capability)
