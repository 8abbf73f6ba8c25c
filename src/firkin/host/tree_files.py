"""Reading and changing a confined tree whose content is hostile, and may change under our hands.

Nothing here opens what is no regular file or directory, so no FIFO or device can
hold a thread up, and O_NONBLOCK keeps a lease on a file from doing so. Failures
are `OSError`s. All functions block.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from sys import getsizeof

from firkin.host.confined import ConfinedTree
from firkin.law.errors import InvalidSpec
from firkin.law.files import FileType
from firkin.law.volumes import VolumeAttributes, VolumeEntry, VolumePath

MOST_NAMES = 200_000
_DEEPEST = 64
_AT_ONCE = 1000
_REMOVED_WITHIN_S = 300.0
_KINDS = {stat.S_IFREG: FileType.FILE, stat.S_IFDIR: FileType.DIRECTORY, stat.S_IFLNK: FileType.SYMLINK}
_NOTHING = VolumeAttributes()


@contextmanager
def held(tree: ConfinedTree, path: VolumePath, *, follow: bool = False) -> Iterator[int]:
    """A descriptor that only names what is at `path`; links on the way are followed inside the tree."""
    fd = tree.open(path, os.O_PATH | (0 if follow else os.O_NOFOLLOW))
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def holder(tree: ConfinedTree, path: VolumePath) -> Iterator[int]:
    """The directory that holds `path`, for reading. The root is held by nobody: EBUSY."""
    if path == "/":
        raise OSError(errno.EBUSY, "the root of the volume cannot be replaced", path)
    with tree.directory(os.path.dirname(path)) as fd:
        yield fd


def entry_at(tree: ConfinedTree, path: VolumePath) -> VolumeEntry:
    with held(tree, path) as fd:
        return _entry(path, fd)


def _entry(path: VolumePath, fd: int) -> VolumeEntry:
    found = os.fstat(fd)
    target = os.readlink("", dir_fd=fd) if stat.S_ISLNK(found.st_mode) else None
    return as_entry(path, found, target)


def as_entry(path: VolumePath, found: os.stat_result, target: str | None) -> VolumeEntry:
    return VolumeEntry(
        path=path,
        file_type=_KINDS.get(stat.S_IFMT(found.st_mode), FileType.OTHER),
        size_bytes=found.st_size,
        mode=stat.S_IMODE(found.st_mode),
        uid=found.st_uid,
        gid=found.st_gid,
        accessed_at_ns=found.st_atime_ns,
        modified_at_ns=found.st_mtime_ns,
        changed_at_ns=found.st_ctime_ns,
        target=target,
    )


def entries_below(
    tree: ConfinedTree,
    path: VolumePath,
    *,
    depth: int,
    most: int,
    most_bytes: int = 1 << 40,
    wanted: Callable[[], bool] = lambda: True,
) -> list[VolumeEntry]:
    """What lies in the directory `path`, down to `depth`, in name order. ECANCELED once it is not `wanted`.

    EFBIG when there are more than `most`, or when their names and targets take more than `most_bytes` of memory.
    """
    found: list[VolumeEntry] = []
    for entry in walk(tree, path, depth=depth):
        if not wanted():
            raise OSError(errno.ECANCELED, "nobody waits for the list any more", path)
        most_bytes -= getsizeof(entry.path) + getsizeof(entry.target)
        if len(found) == most or most_bytes < 0:
            text = f"there are more than {most} entries, or their names are too long; list fewer at once"
            raise OSError(errno.EFBIG, text, path)
        found.append(entry)
    return found


def walk(tree: ConfinedTree, path: VolumePath, *, depth: int) -> Iterator[VolumeEntry]:
    """A directory's names in order, then those of the directories in it. What vanishes meanwhile is left out."""
    waiting = [(path, depth)]
    while waiting:
        folder, left = waiting.pop()
        below: list[tuple[VolumePath, int]] = []
        try:
            for entry in _inside(tree, folder):
                yield entry
                if left > 1 and entry.file_type is FileType.DIRECTORY:
                    below.append((entry.path, left - 1))
        except (FileNotFoundError, NotADirectoryError):
            if folder == path:
                raise
        waiting += reversed(below)


def _inside(tree: ConfinedTree, folder: VolumePath) -> Iterator[VolumeEntry]:
    fd = tree.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        names = _names(fd, MOST_NAMES + 1)
        if len(names) > MOST_NAMES:
            raise OSError(errno.EFBIG, f"there are more than {MOST_NAMES} names in one directory", folder)
        for name in sorted(names):
            entry = _named(fd, folder, name)
            if entry is not None:
                yield entry
    finally:
        os.close(fd)


def _names(fd: int, most: int) -> list[str]:
    """The first names in a directory: it may hold more than this process has room for."""
    with os.scandir(fd) as entries:
        return [entry.name for entry in islice(entries, most)]


def _named(fd: int, folder: VolumePath, name: str) -> VolumeEntry | None:
    try:
        found = os.stat(name, dir_fd=fd, follow_symlinks=False)
        target = os.readlink(name, dir_fd=fd) if stat.S_ISLNK(found.st_mode) else None
        return as_entry(folder.below(name), found, target)
    except InvalidSpec as error:
        raise OSError(errno.ENAMETOOLONG, str(error), folder) from error
    except (OSError, ValueError):
        return None


def dress(fd: int, wishes: VolumeAttributes) -> None:
    """Give what the descriptor names its owner and mode. Owner first: changing it clears setuid bits."""
    place = f"/proc/self/fd/{fd}"
    if wishes.mode is not None and stat.S_ISLNK(os.fstat(fd).st_mode):
        raise OSError(errno.EOPNOTSUPP, "a symlink has no mode of its own")
    if wishes.uid is not None or wishes.gid is not None:
        os.chown(place, -1 if wishes.uid is None else wishes.uid, -1 if wishes.gid is None else wishes.gid)
    if wishes.mode is not None:
        os.chmod(place, wishes.mode)


def change(tree: ConfinedTree, path: VolumePath, wishes: VolumeAttributes) -> VolumeEntry:
    with held(tree, path) as fd:
        dress(fd, wishes)
        return _entry(path, fd)


def make_directory(tree: ConfinedTree, path: VolumePath, wishes: VolumeAttributes, *, force: bool) -> VolumeEntry:
    """With `force` as ``mkdir -p``: missing parents are made, and a directory that is there stays as it is."""
    if path == "/":
        if force:
            return entry_at(tree, path)
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
    if force:
        make_parents(tree, path)
    with holder(tree, path) as fd:
        try:
            _make(fd, path.name, wishes)
        except FileExistsError:
            if not force or not stat.S_ISDIR(os.stat(path.name, dir_fd=fd, follow_symlinks=False).st_mode):
                raise
        os.fsync(fd)
    return entry_at(tree, path)


def make_parents(tree: ConfinedTree, path: VolumePath) -> None:
    """The directories above `path`; each that is missing is made, owned as the one that it lies in."""
    done = VolumePath("/")
    for name in path.split("/")[1:-1]:
        inner = done.below(name)
        try:
            os.close(tree.open(inner, os.O_PATH | os.O_DIRECTORY))
        except FileNotFoundError:
            with tree.directory(done) as fd:
                with suppress(FileExistsError):  # somebody inside was faster, or it is a link to nowhere
                    _make(fd, name, _NOTHING)
                os.fsync(fd)
        done = inner


def _make(fd: int, name: str, wishes: VolumeAttributes) -> None:
    os.mkdir(name, 0o700, dir_fd=fd)
    inner = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
    try:
        dress(inner, filled(wishes, os.fstat(fd), mode=0o755))
    finally:
        os.close(inner)


def filled(wishes: VolumeAttributes, like: os.stat_result, *, mode: int) -> VolumeAttributes:
    """`wishes`, and for what they leave open the owner of `like` and `mode`."""
    return VolumeAttributes(
        uid=like.st_uid if wishes.uid is None else wishes.uid,
        gid=like.st_gid if wishes.gid is None else wishes.gid,
        mode=mode if wishes.mode is None else wishes.mode,
    )


def remove_at(tree: ConfinedTree, path: VolumePath) -> None:
    """Remove `path` with all that is below it; links are removed, not followed. Of the root only the content goes."""
    if path == "/":
        with tree.directory("/") as fd:
            _empty_all(fd)
            os.fsync(fd)
        return
    with holder(tree, path) as fd:
        if not _unlinked(fd, path.name):
            inner = os.open(path.name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
            try:
                _empty_all(inner)
            finally:
                os.close(inner)
            os.rmdir(path.name, dir_fd=fd)
        os.fsync(fd)


def _unlinked(fd: int, name: str) -> bool:
    """False for a directory."""
    try:
        os.unlink(name, dir_fd=fd)
    except IsADirectoryError:
        return False
    return True


def _empty_all(top: int) -> None:
    """Directories that lie too deep for our stack are moved up to `top` first, and go in the next round."""
    until = time.monotonic() + _REMOVED_WITHIN_S
    while _names(top, 1):
        _empty(top, top, 0, until)


def _empty(fd: int, top: int, level: int, until: float) -> None:
    while names := _names(fd, _AT_ONCE):
        if time.monotonic() > until:  # somebody inside puts in more than is taken out
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))
        for name in names:
            with suppress(FileNotFoundError):
                _remove_one(fd, name, top, level, until)


def _remove_one(fd: int, name: str, top: int, level: int, until: float) -> None:
    if _unlinked(fd, name):
        return
    if level == _DEEPEST:
        os.rename(name, secrets.token_hex(16), src_dir_fd=fd, dst_dir_fd=top)
        return
    inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
    try:
        _empty(inner, top, level + 1, until)
    finally:
        os.close(inner)
    os.rmdir(name, dir_fd=fd)
