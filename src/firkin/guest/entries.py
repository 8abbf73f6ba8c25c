"""What a name in a directory is, as an *entry* of the wire. Nothing here opens a FIFO or follows a magic link."""

from __future__ import annotations

import errno
import os
import stat

from firkin.guest import syscalls
from firkin.guest.faults import Refused, refusal
from firkin.wire.operations import METADATA_PREFIX

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from firkin.guest.accounts import Accounts
    from firkin.wire.codec import Object

_PLAIN = os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NONBLOCK
_DELETED = " (deleted)"
_MOST_METADATA = 64 << 10  # of one file, in bytes: ext4 has room for less, other file systems for hundreds of MiB
_A_CHARACTER = 12  # bytes of JSON, at most: two escapes
_THE_REST = 1024  # of an entry's JSON: keys, numbers, punctuation


def _file_type(mode: int) -> str:
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "directory"
    return "symlink" if stat.S_ISLNK(mode) else "other"


class Entries:
    """Describes files with the names of the guest's own users."""

    __slots__ = ("_accounts", "_open", "proc_device")

    def __init__(self, accounts: Accounts) -> None:
        self._accounts = accounts
        self.proc_device = -1
        self._open: Callable[[str, int, int], int] = os.open

    def begin(self) -> None:
        """Find out what this root and this kernel are like."""
        self.proc_device = _device("/proc")
        self._open = _opener()

    def of(self, path: str, *, follow: bool = False) -> Object:
        """Raises `Refused`."""
        try:
            status = os.stat(path, follow_symlinks=follow)
        except (OSError, ValueError) as error:
            raise refusal(error, path) from None
        if status.st_dev == self.proc_device:
            _refuse_own(path, os.path.realpath(os.path.dirname(path)))
        entry = self.describe(path, status)
        if stat.S_ISLNK(status.st_mode):
            if status.st_dev != self.proc_device:  # as in refuse_proc
                self._add_target(entry, path)
        elif stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode):
            _add_metadata(entry, path)
        return entry

    def describe(self, path: str, status: os.stat_result) -> Object:
        self._accounts.refresh()
        kind = _file_type(status.st_mode)
        return {
            "path": path,
            "type": kind,
            "size": status.st_size,
            "mode": status.st_mode if kind == "other" else stat.S_IMODE(status.st_mode),
            "uid": status.st_uid,
            "gid": status.st_gid,
            "owner": self._accounts.owner(status.st_uid),
            "group": self._accounts.group(status.st_gid),
            "mtime_ns": status.st_mtime_ns,
        }

    def of_open(self, path: str, fd: int) -> Object:
        entry = self.describe(path, os.fstat(fd))
        _add_metadata(entry, fd)
        return entry

    def open_regular(self, path: str, flags: int, mode: int = 0) -> int:
        """A descriptor of a regular file that is not the agent's own under /proc. Never waits for a FIFO's other end.

        Raises OSError, `Refused`, ValueError.
        """
        fd = self._open(path, flags | _PLAIN, mode)
        try:
            status = os.fstat(fd)
            if stat.S_ISDIR(status.st_mode):
                raise Refused("is_directory", f"{path}: is a directory", path)
            if not stat.S_ISREG(status.st_mode):
                raise Refused("not_regular", f"{path}: is not a regular file", path)
            self._refuse_own_open(path, fd, status)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def open_directory(self, path: str, *, follow: bool = True) -> int:
        """A descriptor of a directory that is not below the agent's own under /proc. Raises OSError, `Refused`."""
        fd = self._open(path, _DIRECTORY | (0 if follow else os.O_NOFOLLOW), 0)
        try:
            self._refuse_own_open(path, fd, os.fstat(fd))
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _refuse_own_open(self, path: str, fd: int, status: os.stat_result) -> None:
        if status.st_dev == self.proc_device:
            _refuse_own(path, os.readlink(f"/proc/self/fd/{fd}"))

    def refuse_proc(self, path: str) -> None:
        """Links under /proc are not paths, and the agent's own would tell of the host's."""
        if os.lstat(path).st_dev == self.proc_device:
            raise Refused("permission", f"{path}: links under /proc are not read", path)

    def _add_target(self, entry: Object, path: str) -> None:
        """Where a symlink leads in the end, as the kernel resolves it; nothing is added when it leads nowhere."""
        try:
            fd = self._open(path, os.O_PATH | os.O_CLOEXEC, 0)
        except (OSError, ValueError):
            return
        try:
            status = os.fstat(fd)
            target = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            return
        finally:
            os.close(fd)
        if not target.endswith(_DELETED):
            entry["link"] = target
            entry["link_type"] = _file_type(status.st_mode)
            entry["link_mode"] = stat.S_IMODE(status.st_mode)


def _opener() -> Callable[[str, int, int], int]:
    """open(2) without magic links, where the kernel and its filters know openat2."""
    try:
        os.close(syscalls.open_plain("/", os.O_PATH | os.O_CLOEXEC))
    except OSError:
        return os.open
    return syscalls.open_plain


def _device(path: str) -> int:
    try:
        return os.stat(path).st_dev
    except OSError:
        return -1


def _refuse_own(path: str, place: str) -> None:
    """The agent may read its own memory and see where that is, which tells of the host; nobody else inside may."""
    if place.startswith(f"/proc/{os.getpid()}/"):
        raise Refused("permission", f"{path}: belongs to the agent", path)


def encoded_at_most(entry: Object) -> int:
    """How many bytes the entry can take in a frame, without encoding it."""
    texts = len(entry["path"]) + len(entry["owner"]) + len(entry["group"]) + len(entry.get("link", ""))
    size = _THE_REST + _A_CHARACTER * texts
    for name, value in entry.get("metadata", {}).items():
        size += _A_CHARACTER * (len(name) + len(value) + 1)
    return size


def _add_metadata(entry: Object, where: str | int) -> None:
    found: dict[str, str] = {}
    left = _MOST_METADATA
    try:
        for name in os.listxattr(where):
            if not name.startswith(METADATA_PREFIX):
                continue
            value = os.getxattr(where, name)
            left -= len(name) + len(value)
            if left < 0:
                raise Refused("limit", f"{entry['path']}: has more than {_MOST_METADATA} bytes of metadata")
            found[name[len(METADATA_PREFIX) :]] = os.fsdecode(value)
    except OSError:
        return
    if found:
        entry["metadata"] = found


def set_metadata(fd: int, metadata: dict[str, str]) -> None:
    """Replace all of a file's metadata. Raises OSError, and `Refused` for more than the file system has room for."""
    try:
        _set_metadata(fd, metadata)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.E2BIG, errno.ERANGE) or _is_full(fd):
            raise
        raise Refused("limit", "the metadata takes more room than the file system has for that of one file") from None


def _is_full(fd: int) -> bool:
    disk = os.fstatvfs(fd)
    return disk.f_bavail == 0 or (disk.f_files > 0 and disk.f_favail == 0)


def _set_metadata(fd: int, metadata: dict[str, str]) -> None:
    kept = {METADATA_PREFIX + name: os.fsencode(value) for name, value in metadata.items()}
    for name in os.listxattr(fd):
        if name.startswith(METADATA_PREFIX) and name not in kept:
            os.removexattr(fd, name)
    for name, value in kept.items():
        os.setxattr(fd, name, value)
