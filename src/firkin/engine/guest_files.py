"""Files of one sandbox, in the law's words."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Self, TypeVar

from firkin.engine.guest_copies import GuestCopies
from firkin.engine.guest_entries import read_entries, read_entry, weight
from firkin.engine.guest_faults import file_errors
from firkin.engine.guest_link import CALL_S, GuestLink, LinkStream
from firkin.engine.guest_watches import Reach, begin_watch, hold_watch
from firkin.law.errors import FileFault, FilesystemFailure
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
from firkin.law.processes import check_user
from firkin.wire import codec
from firkin.wire.codec import Object
from firkin.wire.frames import DATA, EVENT, RESULT, WireError

T = TypeVar("T")

_REMOVAL_S = 600.0
ENTRIES_AT_MOST = 200_000
_STALL_S = 60.0  # how long the agent may stand still in the middle of a transfer or a list


class GuestFileBytes:
    """The bytes of a file that is being read."""

    def __init__(self, link: GuestLink, stream: LinkStream, path: str) -> None:
        self._link = link
        self._stream = stream
        self._path = path

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        with file_errors("read file", self._link.sandbox_id, self._path):
            kind, value = await self._stream.receive(_STALL_S)
        if kind == RESULT:
            raise StopAsyncIteration
        if kind != DATA:
            raise self._link.distrust(f"frame kind {kind} came where a file's bytes were due")
        data: bytes = value
        return data

    async def aclose(self) -> None:
        await self._stream.aclose()


class GuestFiles:
    """The verbs of `FilesystemControl` for one sandbox."""

    def __init__(self, link: GuestLink) -> None:
        self._link = link
        self._copies = GuestCopies(self)

    @property
    def sandbox_id(self) -> str:
        return self._link.sandbox_id

    async def stat(self, path: SandboxPath) -> FileEntry:
        return await self._entry("stat", path, {})

    async def list(self, path: SandboxPath, options: ListOptions) -> Sequence[FileEntry]:
        entries: list[FileEntry] = []
        most = ENTRIES_AT_MOST if options.at_most is None else min(options.at_most, ENTRIES_AT_MOST)
        left = most
        with file_errors("list directory", self.sandbox_id, path):
            stream = self._link.stream("list", {"path": path, "depth": options.depth or 0})
            try:
                while True:
                    kind, value = await stream.receive(_STALL_S)
                    if kind == RESULT:
                        return entries
                    if kind != EVENT:
                        continue
                    page = _checked(self._link, read_entries, value)
                    left -= sum(map(weight, page))
                    if left < 0:
                        text = (
                            f"{path} holds more than {most} entries, or their names are long; "
                            "list a folder below it, or less deep"
                        )
                        raise FilesystemFailure("list directory", FileFault.LIMIT, text, path=path)
                    if entries:
                        await asyncio.sleep(0)  # the next page may be here already: others want the loop, too
                    entries += page
            finally:
                await stream.aclose()

    async def open_read(self, path: SandboxPath, options: ReadOptions) -> tuple[FileEntry, AsyncIterator[bytes]]:
        length = -1 if options.length is None else options.length
        with file_errors("read file", self.sandbox_id, path):
            stream = self._link.stream("read", {"path": path, "offset": options.offset, "length": length})
            try:
                entry = _checked(self._link, read_entry, await stream.event(CALL_S))
            except BaseException:
                await stream.aclose()
                raise
        return entry, GuestFileBytes(self._link, stream, path)

    async def write(self, path: SandboxPath, data: bytes | AsyncIterable[bytes], options: WriteOptions) -> FileEntry:
        args: Object = {
            "path": path,
            "user": _owner(options.user),
            "append": options.append,
            "mode": options.mode,
            "parents": options.create_parents,
            "metadata": None if options.metadata is None else dict(options.metadata),
        }
        with file_errors("write file", self.sandbox_id, path, args["user"]):
            stream = self._link.stream("write", args)
            try:
                await _upload(stream, data)
                return _checked(self._link, read_entry, await stream.result(_STALL_S))
            finally:
                await stream.aclose()

    async def mkdir(
        self, path: SandboxPath, *, parents: bool = False, user: str | None = None, mode: int | None = None
    ) -> FileEntry:
        return await self._entry("mkdir", path, {"parents": parents, "user": _owner(user), "mode": mode})

    async def rename(self, source: SandboxPath, target: SandboxPath, *, user: str | None = None) -> FileEntry:
        return await self._entry("rename", source, {"target": target, "user": _owner(user)})

    async def remove(self, path: SandboxPath, *, recursive: bool = False) -> None:
        with file_errors("remove file", self.sandbox_id, path):
            await self._link.call("remove", {"path": path, "recursive": recursive}, within_s=_REMOVAL_S)

    async def chown(self, path: SandboxPath, user: str) -> None:
        with file_errors("change owner", self.sandbox_id, path, user):
            await self._link.call("chown", {"path": path, "user": _owner(user)})

    async def symlink(self, path: SandboxPath, target: str, *, user: str | None = None) -> FileEntry:
        """Make `path` a symbolic link with the text `target`."""
        return await self._entry("symlink", path, {"target": target, "user": _owner(user)})

    async def link_text(self, path: SandboxPath) -> str:
        """What the symbolic link at `path` says, resolved or not."""
        with file_errors("read link", self.sandbox_id, path):
            answer = await self._link.call("readlink", {"path": path})
        return _checked(self._link, lambda value: codec.text(value, "target"), answer)

    async def copy_in(self, host: Path, guest: SandboxPath, options: CopyOptions) -> FileEntry:
        return await self._copies.copy_in(host, guest, options)

    async def copy_out(self, guest: SandboxPath, host: Path, options: CopyOptions) -> None:
        await self._copies.copy_out(guest, host, options)

    async def watch(self, path: SandboxPath, options: WatchOptions) -> FileEventStream:
        return await begin_watch(self._link, path, options)

    async def watch_held(self, path: SandboxPath, options: WatchOptions, reach: Reach) -> FileEventStream:
        """A watch that outlives this connection; `reach` gives the one of the day."""
        return await hold_watch(self._link, path, options, reach)

    async def _entry(self, operation: str, path: SandboxPath, args: Object) -> FileEntry:
        with file_errors(operation, self.sandbox_id, path, str(args.get("user", ""))):
            answer = await self._link.call(operation, {"path": path, **args})
        return _checked(self._link, read_entry, answer)


def _owner(user: str | None) -> str:
    """The wire's word for who owns what is made, which is empty for root. `InvalidSpec` when a caller's is."""
    check_user("name an owner", user)
    return user or ""


async def _upload(stream: LinkStream, data: bytes | AsyncIterable[bytes]) -> None:
    """Ends early when the agent has answered already: with an error."""
    if isinstance(data, bytes | bytearray | memoryview):
        if not await stream.send(data, within_s=_STALL_S):
            return
    else:
        async for chunk in data:
            if not await stream.send(chunk, within_s=_STALL_S):
                return
    await stream.end()


def _checked(link: GuestLink, read: Callable[[Object], T], value: Object) -> T:
    try:
        return read(value)
    except WireError as error:
        raise link.distrust(str(error)) from None
