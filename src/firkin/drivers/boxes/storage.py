"""Step: the sandbox's own root, an overlay of the template and a disk of its own.

The overlay's lowers (the template's layers, shared by all, unshifted) and upper (on this
sandbox's ext4 file) are idmapped to the sandbox's ids, so nothing is ever
chowned and the bytes on disk carry the ids that the programs inside see.

All three mounts are made detached: they are in no mount table, and they go with
the last process that uses them, whoever was killed before. Kernels before 6.13
cannot take overlay layers by descriptor; there the layers are attached inside
the sandbox's own, already private mount namespace, and detached again at once.

Security: ext4 and overlay carry MNT_NODEV, because their superblocks belong to
the initial user namespace and a device node in an image would otherwise work.
The overlay is not MNT_NOSUID: setuid programs inside only reach mapped ids.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress

from firkin.drivers.boxes.orders import LaunchOrder
from firkin.host.disks import UPPER, WORK, attach, copy_image, mount_ext4
from firkin.host.syscalls import (
    ATTR_IDMAP,
    ATTR_NODEV,
    ATTR_RDONLY,
    NewFilesystem,
    mount_setattr,
    move_mount,
    umount,
)

LOWER_POINT, DISK_POINT = "/lower", "/disk"


def make_disk(order: LaunchOrder, source: int, disks: int) -> int:
    """Copy the image `source` for this sandbox, bind its loop device, mount it: a detached ext4."""
    image = source
    if not order.continues:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        image = os.open(f"{order.sandbox_id}.img", flags, 0o600, dir_fd=disks)
        copy_image(source, image, order.disk_bytes)
        os.close(source)
    device = _loop_node(order)
    loop = attach(device, image)
    os.close(image)
    mounted = mount_ext4(device)
    os.close(loop)
    return mounted


def _loop_node(order: LaunchOrder) -> str:
    """The launcher's root has no devtmpfs: make the node of this slot's device by number."""
    path = f"/loop/{order.slot}"
    with suppress(FileExistsError):
        os.mknod(path, stat.S_IFBLK | 0o600, os.makedev(order.loop[0], order.loop[1]))
    return path


def idmapped(tree: int, idmap_namespace: int) -> int:
    """Make the detached copy `tree` read-only and owned, as seen inside, by the sandbox's ids."""
    mount_setattr(tree, ATTR_IDMAP | ATTR_RDONLY | ATTR_NODEV, user_namespace=idmap_namespace)
    return tree


def overlay(lowers: list[int], disk: int, idmap_namespace: int, *, detached: bool) -> int:
    """A detached overlay of the idmapped `lowers` (lowest first) under the disk's upper. Consumes all descriptors."""
    for lower in lowers:
        idmapped(lower, idmap_namespace)
    mount_setattr(disk, ATTR_IDMAP, user_namespace=idmap_namespace)
    made = _by_descriptor(lowers, disk) if detached else _by_path(lowers, disk)
    for used in (*lowers, disk):
        os.close(used)
    return made


def _begun() -> NewFilesystem:
    """What is written must be whole by itself, as a layer for others: neither option may be a kernel's default."""
    filesystem = NewFilesystem("overlay")
    for option in ("metacopy", "redirect_dir"):
        filesystem.option(option, "off")
    return filesystem


def _by_descriptor(lowers: list[int], disk: int) -> int:
    upper, work = _folder(disk, UPPER), _folder(disk, WORK)
    filesystem = _begun()
    for lower in reversed(lowers):
        filesystem.descriptor("lowerdir+", lower)
    filesystem.descriptor("upperdir", upper)
    filesystem.descriptor("workdir", work)
    made = filesystem.mount(ATTR_NODEV)
    os.close(upper)
    os.close(work)
    return made


def _folder(disk: int, name: str) -> int:
    """Not through a symlink: a disk may come from an archive that somebody else made."""
    return os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=disk)


def _by_path(lowers: list[int], disk: int) -> int:
    """Their places have the shortest names there are: fsconfig(2) takes 256 bytes for all of them together."""
    for name in (UPPER, WORK):
        os.close(_folder(disk, name))
    os.chdir(LOWER_POINT)
    for number, lower in enumerate(lowers):
        with suppress(FileExistsError):
            os.mkdir(str(number))
        move_mount(lower, str(number))
    move_mount(disk, DISK_POINT)
    filesystem = _begun()
    filesystem.option("lowerdir", ":".join(str(number) for number in reversed(range(len(lowers)))))
    filesystem.option("upperdir", f"{DISK_POINT}/{UPPER}")
    filesystem.option("workdir", f"{DISK_POINT}/{WORK}")
    made = filesystem.mount(ATTR_NODEV)
    for number in range(len(lowers)):
        umount(str(number))
    umount(DISK_POINT)
    os.chdir("/")
    return made
