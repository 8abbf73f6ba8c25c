"""Disks of volumes: one loop device for each image, and a mount of its own for everybody who uses it.

Two loop devices over one image would be two caches of one disk, and would destroy
it. So a device that is bound to the image is looked for first, by the inode that
the kernel names, and a new one is bound only when there is none. The caller lets
one thread at a time do that for an image; a state folder has one server.

Volumes have loop numbers of their own, far from those of slots. Any server may
take any free one: to bind is one atomic step (LOOP_CONFIGURE) on a device that is
held open, so EBUSY means that somebody else was faster, and the next is tried.
Nothing is ever mounted but a device whose binding was made or verified through the
open descriptor. A device unbinds itself after its last use, whoever was killed.

All mounts of a device are detached mounts of one superblock, which becomes
read-only when the kernel finds it damaged, and is mended before it is used again. Unlike a sandbox's
disk a volume has a journal and barriers: what was synced is there after a crash of
the host. Direct I/O keeps the host from caching what the volume's ext4 has cached.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import time
from contextlib import suppress

from firkin.host.base_disks import repair
from firkin.host.disks import add_loop_device, attach, loop_is_bound, remove_loop_device
from firkin.host.superblocks import has_met_errors
from firkin.host.syscalls import ATTR_NODEV, ATTR_NOSUID, NewFilesystem

FIRST_LOOP = 8192
LOOPS = 4096
_LOOP_GET_STATUS64 = 0x4C05
_BLKRASET = 0x1262
_READ_AHEAD = 8192  # sectors of 512 bytes: with less, direct reads are too small to be as fast as the host's own
_STATUS_SIZE = 232  # struct loop_info64: lo_device and lo_inode come first
_LO_FLAGS_READ_ONLY = 1
_FLAGS_OFFSET = 52
_GONE = (errno.ENXIO, errno.ENOENT, errno.ENODEV)  # unbound or removed between a look and an open
_DYING_WITHIN_S = 10.0


def mount_volume(image: str) -> int:
    """A new detached mount of the ext4 in the file `image`. Blocks: in a thread, and one at a time for an image."""
    file = os.open(image, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        loop, device = _bound(file, os.path.basename(image)) or _bind_in_order(file, image)
    finally:
        os.close(file)
    try:
        return _mount(device)
    finally:
        os.close(loop)  # from here on the mount keeps it bound


def remove_unbound_devices() -> None:
    """Give the devices in our range back that nobody uses, whichever server made them."""
    for number in _existing():
        if not loop_is_bound(number):
            remove_loop_device(number)


def _mount(device: str) -> int:
    """The last mount before may still be on its way out: the kernel then says EBUSY for a moment."""
    until = time.monotonic() + _DYING_WITHIN_S
    while True:
        filesystem = NewFilesystem("ext4")
        filesystem.option("source", device)
        filesystem.flag("noinit_itable")  # the image is sparse: it is zero already
        filesystem.flag("discard")  # deleted files give their room back to the host
        try:
            return filesystem.mount(ATTR_NODEV | ATTR_NOSUID)
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > until:
                raise
        time.sleep(0.005)


def _bound(file: int, name: str) -> tuple[int, str] | None:
    """The device that is bound to the open `file`, held open. Also one that somebody bound outside our range."""
    for entry in os.listdir("/sys/block"):
        if entry.startswith("loop") and os.path.basename(_backing(entry)) == name:
            held = _opened(int(entry[4:]), file)
            if held is not None:
                return held
    return None


def _backing(entry: str) -> str:
    try:
        with open(f"/sys/block/{entry}/loop/backing_file") as file:
            return file.read().rstrip("\n")
    except OSError:  # not bound
        return ""


def _opened(number: int, file: int) -> tuple[int, str] | None:
    try:
        device = _node(number)
        fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in _GONE:
            return None
        raise
    try:
        if _is_over(fd, file):
            return fd, device
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return None


def _is_over(loop: int, file: int) -> bool:
    """Whether the open loop device is bound to the open file, for reading and writing."""
    status = bytearray(_STATUS_SIZE)
    try:
        fcntl.ioctl(loop, _LOOP_GET_STATUS64, status)
    except OSError as error:
        if error.errno in _GONE:
            return False
        raise
    device, inode = struct.unpack_from("=QQ", status)
    found = os.fstat(file)
    if (device, inode) != (_encoded(found.st_dev), found.st_ino):
        return False
    if struct.unpack_from("=I", status, _FLAGS_OFFSET)[0] & _LO_FLAGS_READ_ONLY:
        raise OSError(errno.EBUSY, "somebody has bound the volume's image to a loop device that is read-only")
    return True


def _encoded(device: int) -> int:
    """A device number as the kernel writes it (new_encode_dev), which is not the C library's way for large ones."""
    major, minor = os.major(device), os.minor(device)
    return (minor & 0xFF) | (major << 8) | ((minor & ~0xFF) << 12)


def _bind_in_order(file: int, image: str) -> tuple[int, str]:
    """Nobody uses it: if the kernel found it damaged once, this is the moment to mend it."""
    if has_met_errors(file):
        repair(image)
    return _bind(file)


def _bind(file: int) -> tuple[int, str]:
    for number in range(FIRST_LOOP, FIRST_LOOP + LOOPS):
        if loop_is_bound(number):
            continue
        try:
            add_loop_device(number)
            device = _node(number)
            loop = attach(device, file, direct=True)
            fcntl.ioctl(loop, _BLKRASET, _READ_AHEAD)
            return loop, device
        except OSError as error:
            if error.errno != errno.EBUSY and error.errno not in _GONE:
                raise
    raise OSError(errno.ENOSPC, f"all {LOOPS} loop devices for volumes are in use")


def _node(number: int) -> str:
    """The device's file; made where nobody else makes them (a container has its own /dev)."""
    path = f"/dev/loop{number}"
    if not os.path.exists(path):
        with open(f"/sys/block/loop{number}/dev") as file:
            major, minor = file.read().split(":")
        with suppress(FileExistsError):
            os.mknod(path, stat.S_IFBLK | 0o600, os.makedev(int(major), int(minor)))
    return path


def _existing() -> list[int]:
    numbers = [int(entry[4:]) for entry in os.listdir("/sys/block") if entry.startswith("loop") and entry[4:].isdigit()]
    return [number for number in numbers if FIRST_LOOP <= number < FIRST_LOOP + LOOPS]
