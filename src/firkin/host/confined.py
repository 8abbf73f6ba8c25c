"""One directory tree, reached so that nothing in it can lead outside it.

The tree may come from a stranger: any name in it may be a link to anywhere.
Every path here is resolved by the kernel with the tree as its root
(`openat2`, RESOLVE_IN_ROOT), and every change is made relative to a directory
descriptor. It refuses to guess: what cannot be opened safely is an `OSError`.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import PurePosixPath

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_OPENAT2 = 437
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_BENEATH = 0x08
_RESOLVE_IN_ROOT = 0x10
_TRIES = 64  # the kernel answers EAGAIN when something was renamed meanwhile, anywhere on the machine
_SMALL_FILE = 4 << 20


class ConfinedTree:
    """The tree under the descriptor `fd`, which this object closes.

    Paths are relative to the tree; a leading ``/`` means its root. With
    `strict`, a link that points out of the tree (an absolute one too) is EXDEV;
    without, it is followed inside the tree, as a process rooted there would.
    """

    def __init__(self, fd: int, *, strict: bool = False) -> None:
        self.fd = fd
        self._resolve = _RESOLVE_NO_MAGICLINKS | (_RESOLVE_BENEATH if strict else _RESOLVE_IN_ROOT)

    @classmethod
    def at(cls, path: str, *, strict: bool = False) -> ConfinedTree:
        """The tree at the trusted host path `path`."""
        return cls(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), strict=strict)

    def __enter__(self) -> ConfinedTree:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    def open(self, path: str, flags: int) -> int:
        """A descriptor of an existing file or directory. Links are followed inside the tree."""
        name = os.fsencode(path.lstrip("/") or ".")
        how = struct.pack("=QQQ", flags | os.O_CLOEXEC, 0, self._resolve)
        for _ in range(_TRIES):
            fd: int = _libc.syscall(ctypes.c_long(_OPENAT2), self.fd, name, how, ctypes.c_size_t(len(how)))
            if fd >= 0:
                return fd
            code = ctypes.get_errno()
            if code != errno.EAGAIN:
                break
        raise OSError(code, os.strerror(code), path)

    @contextmanager
    def directory(self, path: str) -> Iterator[int]:
        """A descriptor of an existing directory, for the length of a block."""
        fd = self.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            yield fd
        finally:
            os.close(fd)

    @contextmanager
    def parent(self, path: str) -> Iterator[tuple[int, str]]:
        """The descriptor of the directory that holds `path`, and the last name. Missing directories are made."""
        holder, _, name = path.strip("/").rpartition("/")
        try:
            fd = self.open(holder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            self._make_directories(holder)
            fd = self.open(holder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            yield fd, name
        finally:
            os.close(fd)

    def _make_directories(self, path: str) -> None:
        done = ""
        for name in path.split("/"):
            with self.directory(done) as fd, suppress(FileExistsError):
                os.mkdir(name, 0o755, dir_fd=fd)
            done = f"{done}/{name}"

    def look(self, path: str) -> os.stat_result | None:
        """What `path` leads to, links followed inside the tree; None when that does not exist."""
        try:
            fd = self.open(path, os.O_PATH)
        except OSError:
            return None
        try:
            return os.fstat(fd)
        finally:
            os.close(fd)

    def read(self, path: str) -> bytes | None:
        """The content of a small regular file, None when there is none. A larger one is EFBIG."""
        found = self.look(path)
        if found is None or not stat.S_ISREG(found.st_mode):
            return None
        with os.fdopen(self.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY), "rb") as file:
            content = file.read(_SMALL_FILE + 1)
        if len(content) > _SMALL_FILE:
            raise OSError(errno.EFBIG, f"larger than {_SMALL_FILE} bytes", path)
        return content

    def write(self, path: str, content: str | bytes, mode: int = 0o644, *, owner: tuple[int, int] = (0, 0)) -> None:
        """Make `path` a regular file of its own: a link or a shared inode there is replaced, not written through."""
        data = content.encode(errors="surrogateescape") if isinstance(content, str) else content
        with self.parent(path) as (fd, name):
            remove(fd, name)
            out = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=fd)
            with os.fdopen(out, "wb") as file:
                file.write(data)
                os.fchown(out, *owner)
                os.fchmod(out, mode)

    def link(self, path: str, target: str) -> None:
        """Make `path` a symbolic link to `target`."""
        with self.parent(path) as (fd, name):
            remove(fd, name)
            os.symlink(target, name, dir_fd=fd)

    def make_directory(self, path: str, mode: int = 0o755, *, owner: tuple[int, int] = (0, 0)) -> None:
        """Make `path` a real directory with this mode and owner; anything else of that name is replaced."""
        self._clear_way(str(PurePosixPath("/", path).parent))
        with self.parent(path) as (fd, name):
            make_directory_in(fd, name)
            inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
            try:
                os.fchown(inner, *owner)
                os.fchmod(inner, mode)
            finally:
                os.close(inner)

    def _clear_way(self, path: str) -> None:
        """Let each part of `path` lead to a directory inside the tree; what does not is replaced by an empty one."""
        parts = PurePosixPath(path).parts[1:]
        for count in range(1, len(parts) + 1):
            part = "/".join(parts[:count])
            found = self.look(part)
            if found is None or not stat.S_ISDIR(found.st_mode):
                with self.parent(part) as (fd, name):
                    make_directory_in(fd, name)


def make_directory_in(fd: int, name: str) -> None:
    """Let `name` in the directory `fd` be a real directory; an existing one stays as it is."""
    with suppress(FileNotFoundError):
        if stat.S_ISDIR(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
            return
        os.unlink(name, dir_fd=fd)
    os.mkdir(name, 0o755, dir_fd=fd)


def remove(fd: int, name: str) -> None:
    """Remove `name` in the directory `fd`, with all below it; links are removed, not followed."""
    try:
        os.unlink(name, dir_fd=fd)
    except FileNotFoundError:
        return
    except (IsADirectoryError, PermissionError):
        shutil.rmtree(name, dir_fd=fd)
