"""A writable view of layers that lie on each other: what is written to it becomes the next layer.

The mount is detached: it is in no mount table and goes with the last descriptor
of it, whoever was killed before. Kernels before 6.13 cannot take layers by
descriptor; there it is attached for a moment in a mount namespace of the calling
process's own, which must therefore be a process apart with one thread.

`volatile`: the kernel would write out the whole file system of the host when the
view goes. Whoever keeps the layer makes it durable.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from firkin.host.syscalls import (
    ATTR_NODEV,
    CLONE_NEWNS,
    MS_NODEV,
    MS_PRIVATE,
    MS_REC,
    NewFilesystem,
    mount,
    umount,
    unshare,
)

# None of these may be a kernel's default: each makes a layer that is not whole without what lay below it.
_PLAIN = {"index": "off", "metacopy": "off", "redirect_dir": "off", "xino": "off"}
_VIEW = "view"
_PASSING = (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EIO, errno.EINTR)


class NoOverlay(OSError):
    """The file system of the layers cannot carry one: it is an overlay itself, or knows no attributes."""


def takes_descriptors() -> bool:
    """Whether overlay takes its layers by descriptor (Linux 6.13 and newer)."""
    layer = _path_descriptor("/")
    overlay = NewFilesystem("overlay")
    try:
        overlay.descriptor("lowerdir+", layer)
    except OSError:
        return False
    finally:
        os.close(overlay.fd)
        os.close(layer)
    return True


@contextmanager
def merged_view(lowers: Sequence[str], files: str, work: str, *, attached: bool | None = None) -> Iterator[int]:
    """A directory descriptor of `lowers` (lowest first) under what is written to `files`. `NoOverlay`.

    `work` is an empty folder beside `files`. Without `lowers` it is `files` itself.
    """
    if not lowers:
        yield from _opened(os.open(files, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        return
    by_path = not takes_descriptors() if attached is None else attached
    if by_path:
        _leave_the_hosts_mounts()  # first: an overlay takes folders of the caller's own mounts only
    with ExitStack() as held:
        folders = [_held(held, _path_descriptor(path)) for path in (*lowers, files, work)]
        try:
            view = _attached(folders, work) if by_path else _detached(folders)
        except OSError as error:
            if error.errno in _PASSING:
                raise
            raise NoOverlay(error.errno, f"no overlay can be made there: {error.strerror}", files) from error
        yield from _opened(view)


def _detached(folders: Sequence[int]) -> int:
    *lowers, files, work = folders
    overlay = NewFilesystem("overlay")
    try:
        for lower in reversed(lowers):
            overlay.descriptor("lowerdir+", lower)
        overlay.descriptor("upperdir", files)
        overlay.descriptor("workdir", work)
        for name, value in _PLAIN.items():
            overlay.option(name, value)
        overlay.flag("volatile")
    except BaseException:
        os.close(overlay.fd)
        raise
    return _entered(overlay.mount(ATTR_NODEV))


def _attached(folders: Sequence[int], work: str) -> int:
    """The names are descriptors' too: all of them together may have 4095 bytes, and a path may hold any letter."""
    *lowers, files, upper_work = (f"/proc/self/fd/{fd}" for fd in folders)
    point = os.path.join(os.path.dirname(work), _VIEW)
    os.mkdir(point, 0o700)
    try:
        options = {"lowerdir": ":".join(reversed(lowers)), "upperdir": files, "workdir": upper_work, **_PLAIN}
        text = ",".join(f"{name}={value}" for name, value in options.items())
        mount("overlay", point, "overlay", MS_NODEV, f"{text},volatile")
        view = os.open(point, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        umount(point)  # the descriptor keeps it
    finally:
        os.rmdir(point)
    return view


def _leave_the_hosts_mounts() -> None:
    unshare(CLONE_NEWNS)
    mount("none", "/", None, MS_REC | MS_PRIVATE)


def _entered(mounted: int) -> int:
    """fsmount(2) gives a descriptor that only names the mount; this one can be read."""
    try:
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=mounted)
    finally:
        os.close(mounted)


def _path_descriptor(path: str) -> int:
    return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def _held(stack: ExitStack, fd: int) -> int:
    stack.callback(os.close, fd)
    return fd


def _opened(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)
