"""Disks of sandboxes: sparse ext4 files on loop devices with fixed numbers.

A loop device belongs to a slot and is never searched for: two processes that
ask LOOP_CTL_GET_FREE at once can get the same one, and one of them would then
mount the other's disk. EBUSY is therefore an error, never a reason to look on.

The launcher's part (`copy_image`, `attach`, `mount_ext4`) imports nothing at
call time.

A sandbox's disk promises nothing over a crash of the host while the sandbox runs:
it is mounted without barriers, so that neither a program's fsync nor ours waits
for the host's own disk. What is captured is made durable as a copy.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Callable

from firkin.host.syscalls import ATTR_NODEV, ATTR_NOSUID, NewFilesystem

_FICLONE = 0x40049409
_LOOP_CTL_ADD = 0x4C80
_LOOP_CTL_REMOVE = 0x4C81
_LOOP_CONFIGURE = 0x4C0A
_LO_FLAGS_AUTOCLEAR, _LO_FLAGS_DIRECT_IO = 4, 16
_LOOP_CONFIG_SIZE = 304
_FLAGS_OFFSET = 8 + 52  # struct loop_config: fd, block_size, then loop_info64, whose lo_flags is at 52
_PIECE = 32 << 20
UPPER, WORK = "u", "w"


def copy_image(source: int, target: int, size: int, *, stopped: Callable[[], bool] = lambda: False) -> None:
    """Make the empty file `target` a copy of `source` with `size` bytes: of shared blocks if possible, else sparse.

    `stopped` is asked from time to time; when it says yes, `InterruptedError` is raised.
    """
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError:  # another file system than btrfs or xfs, or two of them
        copy_sparse(source, target, size, stopped=stopped)
    else:
        os.ftruncate(target, size)


def copy_sparse(source: int, target: int, size: int, *, stopped: Callable[[], bool] = lambda: False) -> None:
    """Copy the allocated parts of `source` to the empty file `target` and give it `size` bytes."""
    os.ftruncate(target, size)
    offset = 0
    while True:
        try:
            start = os.lseek(source, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # no data after `offset`
                return
            raise
        offset = os.lseek(source, start, os.SEEK_HOLE)
        os.lseek(target, start, os.SEEK_SET)
        while start < offset:
            if stopped():
                raise InterruptedError(errno.EINTR, "the copy was given up")
            copied = os.sendfile(target, source, start, min(_PIECE, offset - start))
            if copied == 0:
                raise OSError(errno.EIO, "the image became shorter while it was copied")
            start += copied


def attach(device: str, image: int, *, direct: bool = False) -> int:
    """Bind the loop device to the open file `image`; it unbinds itself after its last use. EBUSY if it is bound.

    With `direct` the host does not cache the image, where its file system can do without.
    """
    fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    config = bytearray(_LOOP_CONFIG_SIZE)
    struct.pack_into("=I", config, 0, image)
    flags = _LO_FLAGS_AUTOCLEAR | (_LO_FLAGS_DIRECT_IO if direct else 0)
    struct.pack_into("=I", config, _FLAGS_OFFSET, flags)
    try:
        fcntl.ioctl(fd, _LOOP_CONFIGURE, bytes(config))
    except OSError:
        os.close(fd)
        raise
    return fd


def mount_ext4(device: str) -> int:
    """A detached mount of `device`: no device nodes and no setuid through this mount itself."""
    filesystem = NewFilesystem("ext4")
    filesystem.option("source", device)
    filesystem.flag("noinit_itable")
    filesystem.flag("nodiscard")
    filesystem.flag("nobarrier")
    return filesystem.mount(ATTR_NODEV | ATTR_NOSUID)


def add_loop_device(number: int) -> tuple[int, int]:
    """Make sure that loop device `number` exists; return its major and minor."""
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(control, _LOOP_CTL_ADD, number)
    except FileExistsError:
        pass
    finally:
        os.close(control)
    with open(f"/sys/block/loop{number}/dev") as file:
        major, minor = file.read().split(":")
    return int(major), int(minor)


def remove_loop_device(number: int) -> None:
    """Give the device back; takes tens of milliseconds, so never on a hot path. Silently leaves a busy one."""
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(control, _LOOP_CTL_REMOVE, number)
    except OSError:
        return
    finally:
        os.close(control)


def is_attached(path: str) -> bool:
    """Whether any loop device is bound to the file at `path`. Looks at every one: not for a hot path."""
    wanted = os.path.realpath(path)
    for name in os.listdir("/sys/block"):
        if name.startswith("loop"):
            try:
                with open(f"/sys/block/{name}/loop/backing_file") as file:
                    if file.read().rstrip("\n") == wanted:
                        return True
            except OSError:  # not bound
                continue
    return False


def loop_is_bound(number: int) -> bool:
    return os.path.exists(f"/sys/block/loop{number}/loop/backing_file")
