"""Regular files of a confined tree, open: one that is written and seen when it is whole, one that is read.

Their methods may be called by several threads: each waits for the one before. So
whoever closes a file never takes its descriptor from under a thread that works.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
import threading

from firkin.host.confined import ConfinedTree
from firkin.host.tree_files import as_entry, dress, filled, held, holder, make_parents
from firkin.law.volumes import VolumeAttributes, VolumeEntry, VolumePath

_PIECE = 1 << 20


class NewFile:
    """A file that nobody sees until `place`: whatever breaks off before leaves nothing."""

    def __init__(self, tree: ConfinedTree, path: VolumePath, wishes: VolumeAttributes, *, force: bool = False) -> None:
        """With `force` missing directories are made."""
        if force:
            make_parents(tree, path)
        self.path = path
        self._wishes = wishes
        self._lock = threading.Lock()
        self._beside = ""
        with holder(tree, path) as fd:
            self._holder = os.dup(fd)
        try:
            self._former()
            self._fd = self._unnamed()
        except BaseException:
            os.close(self._holder)
            raise

    def write(self, data: bytes) -> None:
        with self._lock:
            view = memoryview(data)
            while view:
                view = view[os.write(self._fd, view) :]

    def place(self, *, modified_at_ns: int | None = None, durable: bool = True) -> VolumeEntry:
        """Let it take the place of what is there now, if that is no directory."""
        with self._lock:
            former = self._former()
            like = os.fstat(self._holder) if former is None else former
            dress(self._fd, filled(self._wishes, like, mode=0o644 if former is None else stat.S_IMODE(former.st_mode)))
            if modified_at_ns is not None:
                os.utime(self._fd, ns=(modified_at_ns, modified_at_ns))
            if durable:
                os.fsync(self._fd)
            self._link()
            if durable:
                os.fsync(self._holder)
            return as_entry(self.path, os.fstat(self._fd), None)

    def close(self) -> None:
        with self._lock:
            if self._beside:
                os.unlink(self._beside, dir_fd=self._holder)
            os.close(self._fd)
            os.close(self._holder)
            self._fd = self._holder = -1

    def _unnamed(self) -> int:
        """Without a name at all where the file system can do that."""
        flags = os.O_RDWR | os.O_CLOEXEC
        try:
            return os.open(".", flags | os.O_TMPFILE, 0o600, dir_fd=self._holder)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
                raise
        beside = f".{secrets.token_hex(12)}"
        fd = os.open(beside, flags | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=self._holder)
        self._beside = beside
        return fd

    def _former(self) -> os.stat_result | None:
        """The regular file that is there now. EISDIR for a directory."""
        try:
            found = os.stat(self.path.name, dir_fd=self._holder, follow_symlinks=False)
        except FileNotFoundError:
            return None
        if stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), self.path)
        return found if stat.S_ISREG(found.st_mode) else None

    def _link(self) -> None:
        if not self._beside:
            beside = f".{secrets.token_hex(12)}"
            os.link(f"/proc/self/fd/{self._fd}", beside, dst_dir_fd=self._holder, follow_symlinks=True)
            self._beside = beside
        os.rename(self._beside, self.path.name, src_dir_fd=self._holder, dst_dir_fd=self._holder)
        self._beside = ""


class FoundFile:
    """A file that is there, read from its start."""

    def __init__(self, tree: ConfinedTree, path: VolumePath, *, follow: bool = True) -> None:
        """Links are followed inside the tree. EISDIR for a directory, ENXIO for anything else that is no file."""
        self._lock = threading.Lock()
        with held(tree, path, follow=follow) as named:
            kind = os.fstat(named).st_mode
            if stat.S_ISDIR(kind):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
            if not stat.S_ISREG(kind):
                raise OSError(errno.ENXIO, "it is no regular file", path)
            self._fd = os.open(f"/proc/self/fd/{named}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        found = os.fstat(self._fd)
        self.entry = as_entry(path, found, None)
        self.identity = (found.st_dev, found.st_ino)
        self.has_other_names = found.st_nlink > 1

    def read(self, most: int = _PIECE) -> bytes:
        with self._lock:
            return os.read(self._fd, most)

    def close(self) -> None:
        with self._lock:
            os.close(self._fd)
            self._fd = -1
