"""Step: what the sandbox sees below ``/``: devices, /proc, /sys, shared directories, and what is hidden.

Runs as host root in the sandbox's new mount, ipc, uts, cgroup and network
namespaces, before the user namespace is entered. So these mounts belong to the
initial user namespace, and a root inside can neither change nor remove them.

Security: no target path is resolved by name through the image: each mount point
is opened with O_NOFOLLOW below the new root, so a symlink in a hostile image
cannot move a mount. /dev holds seven harmless nodes, made here; device nodes
made inside do not work (no CAP_MKNOD in the initial namespace).
"""

from __future__ import annotations

import os
import stat

from firkin.host.syscalls import (
    ATTR_NODEV,
    ATTR_NOEXEC,
    ATTR_NOSUID,
    ATTR_RDONLY,
    NewFilesystem,
    mount_setattr,
    move_mount,
    move_mount_onto,
    open_tree,
)

ROOT = "/m"
EMPTY = "/empty"  # an empty read-only directory in the launcher's root
_STRICT = ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC

_NODES = (("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0))
_LINKS = (
    ("pts/ptmx", "ptmx"),
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
)
_TTY_GROUP = 5

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
_BOOT_ID = "proc/sys/kernel/random/boot_id"
READ_ONLY = ("proc/bus", "proc/irq", "proc/sys", "proc/sysrq-trigger")


def assemble(root: int, first_uid: int) -> None:
    """Attach the overlay `root` at `ROOT` and fill in devices, /proc and /sys."""
    move_mount(root, ROOT)
    os.close(root)
    _devices(first_uid)
    _attach(NewFilesystem("proc").mount(_STRICT), "proc")
    _attach(NewFilesystem("sysfs").mount(_STRICT | ATTR_RDONLY), "sys")
    for path in READ_ONLY:
        _read_only(path)
    _own_boot_id(first_uid)
    for path in HIDDEN:
        _hide(path)


def share(tree: int, path: str) -> None:
    """Show the (already idmapped, read-only) directory `tree` at `path`."""
    _attach(tree, path.lstrip("/"))


def empty(path: str) -> None:
    """Show an empty directory at `path`, and not, as a mount of one would, where on the host it is."""
    _attach(open_tree(EMPTY), path.lstrip("/"))


def _attach(mounted: int, below: str) -> None:
    """Move a detached mount onto the directory `below` the root, following no symlink on the way."""
    place = os.open(ROOT, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    for part in below.split("/"):
        inner = os.open(part, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=place)
        os.close(place)
        place = inner
    move_mount_onto(mounted, place)
    os.close(place)
    os.close(mounted)


def _devices(first_uid: int) -> None:
    owner = str(first_uid)
    filesystem = NewFilesystem("tmpfs")
    for key, value in (("mode", "755"), ("size", "64k"), ("nr_inodes", "128"), ("uid", owner), ("gid", owner)):
        filesystem.option(key, value)
    _attach(filesystem.mount(ATTR_NOSUID | ATTR_NOEXEC), "dev")
    dev = f"{ROOT}/dev"
    for name, major, minor in _NODES:
        os.mknod(f"{dev}/{name}", stat.S_IFCHR | 0o666, os.makedev(major, minor))
        os.chmod(f"{dev}/{name}", 0o666)
        os.chown(f"{dev}/{name}", first_uid, first_uid)
    for target, name in _LINKS:
        os.symlink(target, f"{dev}/{name}")
    for name in ("pts", "shm", "mqueue"):
        os.mkdir(f"{dev}/{name}")
    terminals = NewFilesystem("devpts")
    for key, value in (("ptmxmode", "0666"), ("mode", "0620"), ("gid", str(first_uid + _TTY_GROUP)), ("max", "64")):
        terminals.option(key, value)
    _attach(terminals.mount(ATTR_NOSUID | ATTR_NOEXEC), "dev/pts")
    shared_memory = NewFilesystem("tmpfs")
    for key, value in (("mode", "1777"), ("size", "64m"), ("uid", owner), ("gid", owner)):
        shared_memory.option(key, value)
    _attach(shared_memory.mount(_STRICT), "dev/shm")
    _attach(NewFilesystem("mqueue").mount(_STRICT), "dev/mqueue")


def _own_boot_id(owner: int) -> None:
    """Show a boot id of this boot in place of the host's.

    The file is one of the sandbox's own /dev, unlinked once it is attached: the
    read-only mount over the kernel's file is the only way to it.
    """
    made = f"{ROOT}/dev/.boot-id"
    with open(made, "x") as file:
        file.write(_random_uuid() + "\n")
    os.chown(made, owner, owner)
    os.chmod(made, 0o444)
    tree = open_tree(made)
    mount_setattr(tree, _STRICT | ATTR_RDONLY)
    move_mount(tree, f"{ROOT}/{_BOOT_ID}")
    os.close(tree)
    os.unlink(made)


def _random_uuid() -> str:
    """Version 4 (RFC 9562), without the module uuid, which the launcher does not hold."""
    digits = os.urandom(16).hex()
    variant = "89ab"[int(digits[16], 16) & 3]
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"


def _read_only(path: str) -> None:
    try:
        tree = open_tree(f"{ROOT}/{path}", recursive=True)
    except FileNotFoundError:  # not on every kernel
        return
    mount_setattr(tree, _STRICT | ATTR_RDONLY, recursive=True)
    move_mount(tree, f"{ROOT}/{path}")
    os.close(tree)


def _hide(path: str) -> None:
    """Put an empty directory, or /dev/null, over a path of /proc or /sys (kernel files: no symlinks to fear)."""
    try:
        kind = os.lstat(f"{ROOT}/{path}").st_mode
    except OSError:  # not on every kernel
        return
    cover = open_tree(EMPTY if stat.S_ISDIR(kind) else f"{ROOT}/dev/null")
    move_mount(cover, f"{ROOT}/{path}")
    os.close(cover)
