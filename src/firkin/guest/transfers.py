"""Bytes of files, in and out, in constant memory."""

from __future__ import annotations

import os
import stat

from firkin.guest.connections import Taker
from firkin.guest.entries import set_metadata
from firkin.guest.faults import Refused, refusal
from firkin.guest.file_operations import Steps, make_parents, path_of
from firkin.guest.replacing import Replacement, keep_set_id, replacement
from firkin.wire import codec
from firkin.wire.frames import CHUNK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from firkin.guest.accounts import Account, Accounts
    from firkin.guest.connections import Stream
    from firkin.guest.entries import Entries
    from firkin.guest.loop import Loop
    from firkin.wire.codec import Object

_NEW_FILE = 0o666 & ~0o022
_CHUNKS_A_STEP = 4


class _Upload(Taker):
    """A file being written."""

    __slots__ = ("_entries", "_fd", "_mode", "_path", "_replacement", "_stream")

    def __init__(self, stream: Stream, entries: Entries, path: str, fd: int, written: Replacement | int) -> None:
        """A replacement gets its name when all has come; without one, `fd` is the file itself, of that mode."""
        self._replacement = written if isinstance(written, Replacement) else None
        self._mode = written if isinstance(written, int) else 0
        self._stream = stream
        self._entries = entries
        self._path = path
        self._fd = fd

    def data(self, payload: bytes) -> None:
        try:
            left = memoryview(payload)
            while left:
                left = left[os.write(self._fd, left) :]
        except OSError as error:
            self._close()
            self._stream.error(error, self._path)
            return
        self._stream.grant(len(payload))

    def eof(self) -> None:
        try:
            if self._replacement is not None:
                self._replacement.commit()
                self._replacement = None
            keep_set_id(self._fd, self._mode)
            entry = self._entries.of_open(self._path, self._fd)
        except OSError as error:
            self._stream.error(error, self._path)
        else:
            self._stream.result(entry)
        self._close()

    def cancelled(self) -> None:
        self._close()

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
        if self._replacement is not None:
            self._replacement.abandon()
            self._replacement = None


class Transfers:
    __slots__ = ("_accounts", "_entries", "_loop")

    def __init__(self, loop: Loop, accounts: Accounts, entries: Entries) -> None:
        self._loop = loop
        self._accounts = accounts
        self._entries = entries

    def operations(self) -> dict[str, Callable[[Stream, Object], None]]:
        return {"read": self.read, "write": self.write}

    def read(self, stream: Stream, args: Object) -> None:
        path = path_of(args)
        offset, length = codec.integer(args, "offset", 0), codec.integer(args, "length", -1)
        if offset < 0:
            raise Refused("invalid", "the offset is below 0", path)
        fd = self._entries.open_regular(path, os.O_RDONLY)
        try:
            stream.event(self._entries.of_open(path, fd))
            if offset:
                os.lseek(fd, offset, os.SEEK_SET)
        except BaseException:
            os.close(fd)
            raise
        Steps(self._loop, stream, _reading(stream, fd, length), path)

    def write(self, stream: Stream, args: Object) -> None:
        path = path_of(args)
        account = self._accounts.lookup(codec.text(args, "user", ""))
        metadata = None if args.get("metadata") is None else codec.mapping(args, "metadata")
        mode = None if args.get("mode") is None else codec.integer(args, "mode")
        append, parents = codec.flag(args, "append"), codec.flag(args, "parents")
        new_mode = _NEW_FILE if mode is None else mode & 0o7777
        instead = None
        try:
            if not append:
                instead = self._replacement(path, account, new_mode, parents=parents)
            fd, created = (instead.fd, False) if instead else self._open(path, account, append=append, parents=parents)
        except OSError as error:
            raise refusal(error, path) from None
        try:
            kept = new_mode if created else stat.S_IMODE(os.fstat(fd).st_mode)
            if not append and instead is None:
                os.ftruncate(fd, 0)
            os.fchown(fd, account.uid, account.gid)
            if created:
                os.fchmod(fd, new_mode)
            if metadata is not None:
                set_metadata(fd, metadata)
        except BaseException:
            os.close(fd)
            if instead is not None:
                instead.abandon()
            raise
        stream.taker = _Upload(stream, self._entries, path, fd, instead or kept)

    def _replacement(self, path: str, account: Account, mode: int, *, parents: bool) -> Replacement | None:
        try:
            return replacement(path, mode, self._entries.proc_device)
        except FileNotFoundError:
            if not parents:
                raise
            make_parents(os.path.realpath(path), account)
            return replacement(path, mode, self._entries.proc_device)

    def _open(self, path: str, account: Account, *, append: bool, parents: bool) -> tuple[int, bool]:
        """A descriptor for writing, and whether the file is new. O_CREAT only for what does not exist:

        with it, the kernel's protection of sticky directories turns even root away.
        """
        flags = os.O_WRONLY | (os.O_APPEND if append else 0)
        try:
            return self._entries.open_regular(path, flags), False
        except FileNotFoundError:
            if parents:
                make_parents(path, account)
            return self._entries.open_regular(path, flags | os.O_CREAT, _NEW_FILE), True


def _reading(stream: Stream, fd: int, length: int) -> Iterator[bool]:
    try:
        left = length
        while left:
            for _ in range(_CHUNKS_A_STEP):
                room = stream.room()
                if not room or not left:
                    break
                data = os.read(fd, min(room, CHUNK) if left < 0 else min(room, CHUNK, left))
                if not data:
                    left = 0
                    break
                left -= len(data) if left > 0 else 0
                stream.data(data)
            if left:
                yield bool(stream.room())
    finally:
        os.close(fd)
    stream.result({})
