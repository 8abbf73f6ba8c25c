"""A file that appears whole or not at all.

The bytes go to a hidden file beside the one that is meant. Only when all have
arrived does it get the right name: a link where nothing was, else a rename over
what was. An upload that breaks off, for whatever reason, leaves the old file
and no trace. (A file without a name, O_TMPFILE, would be neater, but the kernel
tells watchers of the directory about it, by a name that nobody knows.)

Where that cannot be (a device, a FIFO, a name among several of one file) None
is answered and the caller writes in place.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress

UPLOAD_PREFIX = ".firkin-upload-"
SET_ID = stat.S_ISUID | stat.S_ISGID
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Replacement:
    """A hidden file that will be `target`, with `mode`. `existed`: it takes the place of another one."""

    __slots__ = ("_existed", "_hidden", "_mode", "_target", "fd")

    def __init__(self, target: str, hidden: str, fd: int, mode: int, existed: bool) -> None:
        self._target = target
        self._hidden = hidden
        self.fd = fd
        self._mode = mode
        self._existed = existed

    def commit(self) -> None:
        """Give it its name. Raises OSError, and then nothing has changed."""
        try:
            os.fchmod(self.fd, self._mode)
            if self._existed:
                os.rename(self._hidden, self._target)
            else:
                self._link()
        except OSError:
            self.abandon()
            raise
        with suppress(OSError):  # to its own length: watchers learn that it was written, not only that it came
            os.truncate(self._target, os.fstat(self.fd).st_size)
            keep_set_id(self.fd, self._mode)

    def _link(self) -> None:
        """A link, unlike a rename, is told to watchers as something new."""
        try:
            os.link(self._hidden, self._target)
        except FileExistsError:  # somebody was faster: replace his
            os.rename(self._hidden, self._target)
        else:
            os.unlink(self._hidden)

    def abandon(self) -> None:
        with suppress(OSError):
            os.unlink(self._hidden)


def replacement(path: str, new_mode: int, excluded_device: int) -> Replacement | None:
    """A hidden file for what `path` leads to, with the mode and the extended attributes of the file that is there.

    `excluded_device` holds files that are none (/proc). Raises OSError when the directory is missing.
    """
    target = os.path.realpath(path)
    try:
        status = os.lstat(target)
    except FileNotFoundError:
        status = None
    if status is not None and not _replaceable(status, excluded_device):
        return None
    mode = new_mode if status is None else stat.S_IMODE(status.st_mode)
    hidden = os.path.join(os.path.dirname(target), UPLOAD_PREFIX + os.urandom(8).hex())
    fd = os.open(hidden, _NEW, 0o600)
    if status is not None:
        _copy_attributes(target, fd)
    return Replacement(target, hidden, fd, mode, status is not None)


def keep_set_id(fd: int, mode: int) -> None:
    """Give a file the set-id bits of `mode` again. Each change of its owner, its bytes or its length takes them

    (chown(2), write(2)): for those who are root in a user namespace only, too.
    """
    if mode & SET_ID:
        os.fchmod(fd, mode)


def _replaceable(status: os.stat_result, excluded_device: int) -> bool:
    return stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and status.st_dev != excluded_device


def _copy_attributes(source: str, fd: int) -> None:
    with suppress(OSError):
        for name in os.listxattr(source):
            if name.startswith("user."):
                os.setxattr(fd, name, os.getxattr(source, name))
