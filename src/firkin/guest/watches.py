"""Changes of files, told as they happen, from one inotify instance for all watches.

Instances are scarce on a host (128 by default) and shared by all sandboxes, so
one must do. The kernel gives one number per directory, whoever watches it;
`_places` says which watches it stands for and under which name.

The kernel's queue is short and the same for all, so it is emptied at once; what
was in it is kept with each watch that covers it until the host asks. A queue or
a watch that runs over is told as a loss, after what was kept.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import termios
from contextlib import suppress
from struct import Struct

from firkin.guest import syscalls
from firkin.guest.changes import Room
from firkin.guest.faults import Refused, refusal
from firkin.guest.loop import READ
from firkin.guest.replacing import UPLOAD_PREFIX
from firkin.guest.watch import LOST

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from firkin.guest.entries import Entries
    from firkin.guest.loop import Loop
    from firkin.guest.watch import Watch
    from firkin.wire.codec import Object

_MODIFY, _ATTRIB, _MOVED_FROM, _MOVED_TO = 0x2, 0x4, 0x40, 0x80
_CREATE, _DELETE, _DELETE_SELF, _MOVE_SELF = 0x100, 0x200, 0x400, 0x800
_OVERFLOW, _IGNORED, _ISDIR = 0x4000, 0x8000, 0x40000000
_ONLYDIR, _DONT_FOLLOW = 0x01000000, 0x02000000
_MASK = _MODIFY | _ATTRIB | _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE | _DELETE_SELF | _MOVE_SELF | _ONLYDIR

# In the order in which one change is told.
_KINDS = (
    (_CREATE | _MOVED_TO, "create"),
    (_MOVED_FROM | _MOVE_SELF, "rename"),
    (_ATTRIB, "chmod"),
    (_MODIFY, "write"),
    (_DELETE | _DELETE_SELF, "remove"),
)
_HEAD = Struct("iIII")
_READ_SIZE = 64 * 1024
_READS_A_STEP = 4
_COUNT = Struct("i")
_DIRECTORIES_A_STEP = 100
_MOVE_PATIENCE_S = 0.1


class Watches:
    """The inotify instance and who listens to it."""

    __slots__ = ("_departed", "_entries", "_fd", "_loop", "_places", "_replaced", "_scanned", "room")

    def __init__(self, loop: Loop, entries: Entries) -> None:
        self._loop = loop
        self._entries = entries
        self._fd = -1
        self._places: dict[int, list[Watch]] = {}
        self._scanned: set[tuple[Watch, str]] = set()
        self._replaced: set[int] = set()  # cookies of uploads that are about to get their name
        self._departed: dict[int, tuple[int, str]] = {}  # cookie → the directory it left, and its name there
        self.room = Room()

    def entry_of(self, path: str) -> Object | None:
        try:
            return self._entries.of(path)
        except Refused:  # gone already: told without
            return None

    def establish(self, watch: Watch) -> Iterator[bool]:
        """Steps that put `watch` in force. Raises `Refused`."""
        if self._fd < 0:
            self._open()
        try:
            self._place(watch, "", follow=True)
        except OSError as error:
            raise _add_refusal(error, watch.root) from None
        todo = [""] if watch.recursive else []
        done = 0
        while todo:
            for name in self._subdirectories(watch, todo.pop()):
                if self._try_place(watch, name):
                    todo.append(name)
            done += 1
            if done % _DIRECTORIES_A_STEP == 0:
                yield True

    def _open(self) -> None:
        try:
            self._fd = syscalls.inotify_open()
        except OSError as error:
            raise Refused("limit", f"no watch could be made: {os.strerror(error.errno or 0)}") from None
        self._loop.watch(self._fd, READ, self._ready)

    def _place(self, watch: Watch, name: str, *, follow: bool = False) -> None:
        mask = _MASK if follow else _MASK | _DONT_FOLLOW
        number = syscalls.inotify_add(self._fd, os.fsencode(watch.path(name)), mask)
        watch.places[number] = name
        holders = self._places.setdefault(number, [])
        if watch not in holders:
            holders.append(watch)

    def _try_place(self, watch: Watch, name: str) -> bool:
        """False when it is gone or no directory."""
        try:
            self._place(watch, name)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise _add_refusal(error, watch.path(name)) from None
        return True

    def _subdirectories(self, watch: Watch, name: str) -> list[str]:
        return [child for child, is_directory in self._children(watch, name) if is_directory]

    def _children(self, watch: Watch, name: str) -> list[tuple[str, bool]]:
        try:
            with os.scandir(watch.path(name)) as found:
                shown = [e for e in found if not e.name.startswith(UPLOAD_PREFIX)]
                return sorted((os.path.join(name, e.name), e.is_dir(follow_symlinks=False)) for e in shown)
        except OSError:
            return []

    def drop(self, watch: Watch) -> None:
        self.leave_all(watch)
        watch.end()

    def leave_all(self, watch: Watch) -> None:
        """The kernel need not tell of it any more."""
        for number in list(watch.places):
            self._leave(watch, number)

    def _leave(self, watch: Watch, number: int) -> None:
        watch.places.pop(number, None)
        holders = self._places.get(number)
        if holders is None:
            return
        if watch in holders:
            holders.remove(watch)
        if not holders:
            del self._places[number]
            syscalls.inotify_remove(self._fd, number)

    def _ready(self, _events: int) -> None:
        for _ in range(_READS_A_STEP):
            if not self._pass_on():
                return

    def catch_up(self) -> Iterator[bool]:
        """Steps that take in every change that is complete at the first of them."""
        left = self._queued()
        reads = 0
        while left > 0:
            size = self._pass_on()
            if not size:
                return
            left -= size
            reads += 1
            if reads % _READS_A_STEP == 0:
                yield True

    def _queued(self) -> int:
        """How many bytes of changes the kernel has for us."""
        if self._fd < 0:
            return 0
        (size,) = _COUNT.unpack(fcntl.ioctl(self._fd, termios.FIONREAD, bytes(_COUNT.size)))
        return int(size)

    def _pass_on(self) -> int:
        """Take in the next few changes: how many bytes they were."""
        try:
            data = os.read(self._fd, _READ_SIZE)
        except OSError:
            data = b""
        if not data:
            self._scanned.clear()
            return 0
        told: dict[Watch, None] = {}
        offset = 0
        while offset < len(data):
            number, mask, cookie, length = _HEAD.unpack_from(data, offset)
            offset += _HEAD.size
            name = os.fsdecode(data[offset : offset + length].rstrip(b"\0"))
            offset += length
            self._take(number, mask, cookie, name, told)
        for watch in told:
            watch.tell()
        return len(data)

    def _take(self, number: int, mask: int, cookie: int, name: str, told: dict[Watch, None]) -> None:
        if mask & _OVERFLOW:
            self._lost(told)
            return
        if name.startswith(UPLOAD_PREFIX):
            if mask & _MOVED_FROM:
                self._replaced.add(cookie)
            return
        if mask & _MOVED_TO and cookie in self._replaced:  # that it was written is told by an event of its own
            self._replaced.discard(cookie)
            return
        holders = list(self._places.get(number, ()))
        if mask & _ISDIR and mask & _MOVED_FROM:
            self._departed[cookie] = (number, name)
            self._loop.after(_MOVE_PATIENCE_S, lambda: self._gone(cookie))
        for watch in holders:
            told[watch] = None
            try:
                self._tell(watch, number, mask, cookie, name)
            except Refused as refused:
                watch.fail(refused)
        if mask & _IGNORED:
            for watch in self._places.pop(number, ()):
                watch.places.pop(number, None)
        if mask & _MOVED_TO:
            self._departed.pop(cookie, None)

    def _tell(self, watch: Watch, number: int, mask: int, cookie: int, name: str) -> None:
        base = watch.places.get(number)
        if base is None or (not name and base):  # what happens to a directory itself is told by its parent
            return
        full = os.path.join(base, name) if base else name
        if mask & _CREATE and (watch, full) in self._scanned:
            self._scanned.discard((watch, full))
            return
        for bits, kind in _KINDS:
            if mask & bits:
                watch.add(kind, full)
        appeared = watch.recursive and mask & _ISDIR and mask & (_CREATE | _MOVED_TO)
        if appeared and not (mask & _MOVED_TO and self._renamed(watch, cookie, full)):
            self._appeared(watch, full, report=bool(mask & _CREATE))

    def _renamed(self, watch: Watch, cookie: int, full: str) -> bool:
        """A directory moved within the watch: what is known below it has new names."""
        number, name = self._departed.get(cookie, (-1, ""))
        base = watch.places.get(number)
        if base is None:
            return False
        old = os.path.join(base, name)
        for place, known in list(watch.places.items()):
            if known == old or known.startswith(old + "/"):
                watch.places[place] = full + known[len(old) :]
        return True

    def _appeared(self, watch: Watch, full: str, *, report: bool) -> None:
        """Watch a new directory, and tell of what was made in it before the watch began."""
        todo = [full]
        while todo:
            name = todo.pop()
            if not self._try_place(watch, name):
                continue
            for child, is_directory in self._children(watch, name):
                if report:
                    self._found(watch, child)
                if is_directory:
                    todo.append(child)

    def _found(self, watch: Watch, child: str) -> None:
        """Something in a new directory that may have come before the watch. A file with bytes in it has been written.

        If that is told by the kernel as well, it is told twice: it may have been written twice.
        """
        self._scanned.add((watch, child))
        watch.add("create", child)
        with suppress(OSError):
            status = os.lstat(watch.path(child))
            if stat.S_ISREG(status.st_mode) and status.st_size:
                watch.add("write", child)

    def _gone(self, cookie: int) -> None:
        """A directory left and did not come back: its places are no longer below any watch."""
        number, name = self._departed.pop(cookie, (-1, ""))
        for watch in list(self._places.get(number, ())):
            old = os.path.join(watch.places.get(number, ""), name)
            for place, known in list(watch.places.items()):
                if known == old or known.startswith(old + "/"):
                    self._leave(watch, place)

    def _lost(self, told: dict[Watch, None]) -> None:
        for watch in {watch for holders in self._places.values() for watch in holders}:
            told[watch] = None
            watch.fail(Refused("limit", LOST, watch.root))


def check_watchable(path: str, *, network: bool) -> None:
    """Raises `Refused` for what is no directory, or lies on a network file system that is not the root's own."""
    try:
        status = os.stat(path)
        if not stat.S_ISDIR(status.st_mode):
            raise Refused("not_directory", f"{path}: is not a directory", path)
        if network or status.st_dev == os.stat("/").st_dev:
            return
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise refusal(error, path) from None
    try:
        magic = syscalls.filesystem_magic(fd)
    finally:
        os.close(fd)
    if magic in syscalls.NETWORK_MAGICS:
        raise Refused("network_filesystem", f"cannot watch path on network filesystem: {path}", path)


def _add_refusal(error: OSError, path: str) -> Refused:
    if error.errno == errno.ENOSPC:  # here it means the user's number of watches, not the disk
        return Refused("limit", f"{path}: no more directories can be watched", path)
    return refusal(error, path)
