"""Step: where things are in a launcher's own root, and how they are attached below the root that it makes.

Security: no target path is resolved by name through the image: each mount point
is opened with O_NOFOLLOW below the new root, so a symlink in a hostile image
cannot move a mount.
"""

from __future__ import annotations

import os

from firkin.host.syscalls import (
    ATTR_NODEV,
    ATTR_NOEXEC,
    ATTR_NOSUID,
    ATTR_RDONLY,
    mount_setattr,
    move_mount_onto,
    open_tree,
)

ROOT = "/m"
FRAME = "/frame"  # with a folder each for /dev, /proc and /sys, to be made before there is a root
EMPTY = "/empty"  # an empty read-only directory in the launcher's root
STRICT = ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC

# Facts about the host, or levers on it, that a sandbox has no use for.
HIDDEN = (
    "proc/acpi",
    "proc/asound",
    "proc/cmdline",
    "proc/diskstats",
    "proc/fs",
    "proc/interrupts",
    "proc/kcore",
    "proc/key-users",
    "proc/keys",
    "proc/latency_stats",
    "proc/partitions",
    "proc/pressure",
    "proc/sched_debug",
    "proc/scsi",
    "proc/timer_list",
    "proc/timer_stats",
    "sys/block",
    "sys/class/block",
    "sys/dev/block",
    "sys/devices/virtual/bdi",
    "sys/devices/virtual/block",
    "sys/devices/virtual/dmi",
    "sys/devices/virtual/powercap",
    "sys/firmware",
    "sys/fs",
    "sys/hypervisor",
    "sys/kernel",
    "sys/module",
    "sys/power",
)
BOOT_ID = "proc/sys/kernel/random/boot_id"
READ_ONLY = ("proc/bus", "proc/irq", "proc/sys", "proc/sysrq-trigger")


def share(tree: int, path: str) -> None:
    """Show the (already idmapped, read-only) directory `tree` at `path`."""
    attach(tree, path.lstrip("/"))


def empty(path: str) -> None:
    """Show an empty directory at `path`, and not, as a mount of one would, where on the host it is."""
    attach(open_tree(EMPTY), path.lstrip("/"))


def attach(mounted: int, below: str) -> None:
    """Move a detached mount onto the directory `below` the root, following no symlink on the way."""
    place = os.open(ROOT, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    for part in below.split("/"):
        inner = os.open(part, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=place)
        os.close(place)
        place = inner
    move_mount_onto(mounted, place)
    os.close(place)
    os.close(mounted)


def boot_id(made: str, owner: int) -> int:
    """A detached file with a boot id of this boot, to be shown in place of the host's.

    `made` is where the file is until the caller has attached it and unlinks it again (the kernel attaches
    no file without a name): then the read-only mount is the only way to it.
    """
    fd = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC)
    os.write(fd, f"{_random_uuid()}\n".encode())
    os.close(fd)
    os.chown(made, owner, owner)
    os.chmod(made, 0o444)
    tree = open_tree(made)
    mount_setattr(tree, STRICT | ATTR_RDONLY)
    return tree


def _random_uuid() -> str:
    """Version 4 (RFC 9562), without the module uuid, which the launcher does not hold."""
    digits = os.urandom(16).hex()
    variant = "89ab"[int(digits[16], 16) & 3]
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"
