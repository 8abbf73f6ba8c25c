"""Step: what the sandbox sees below ``/``: devices, /proc, /sys, shared directories, and what is hidden.

Runs as host root in the sandbox's new mount, ipc, uts, cgroup and network
namespaces, before the user namespace is entered. So these mounts belong to the
initial user namespace, and a root inside can neither change nor remove them.

Made apart from the root, before that is known, and moved there as it is.

Security: what is attached where the image could interfere goes through `places`.
/dev holds seven harmless nodes, made here; device nodes made inside do not work
(no CAP_MKNOD in the initial namespace).
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress

from firkin.drivers.boxes.places import BOOT_ID, EMPTY, FRAME, HIDDEN, READ_ONLY, ROOT, STRICT, attach, boot_id
from firkin.host.syscalls import (
    ATTR_NOEXEC,
    ATTR_NOSUID,
    ATTR_RDONLY,
    NewFilesystem,
    mount_setattr,
    move_mount,
    open_tree,
)

_NODES = (("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0))
_LINKS = (
    ("pts/ptmx", "ptmx"),
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
)
_TTY_GROUP = 5
_SHARED_MEMORY = "64m"


def prepare(first_uid: int) -> None:
    """Make devices, /proc and /sys, below `FRAME`: they are the same on every root."""
    _devices(first_uid)
    _mounted(NewFilesystem("proc"), "proc", STRICT)
    _mounted(NewFilesystem("sysfs"), "sys", STRICT | ATTR_RDONLY)
    for path in READ_ONLY:
        _read_only(path)
    _own_boot_id(f"{FRAME}/dev/.boot-id", first_uid)
    for path in HIDDEN:
        _hide(path)


def assemble(root: int) -> None:
    """Attach the overlay `root` at `ROOT`, and what is prepared there."""
    move_mount(root, ROOT)
    os.close(root)
    for name in ("dev", "proc", "sys"):
        attach(os.open(f"{FRAME}/{name}", os.O_PATH | os.O_CLOEXEC), name)


def _mounted(filesystem: NewFilesystem, below: str, attributes: int) -> None:
    made = filesystem.mount(attributes)
    move_mount(made, f"{FRAME}/{below}")
    os.close(made)


def _devices(first_uid: int) -> None:
    owner = str(first_uid)
    filesystem = NewFilesystem("tmpfs")
    for key, value in (("mode", "755"), ("size", _SHARED_MEMORY), ("uid", owner), ("gid", owner)):
        filesystem.option(key, value)
    _mounted(filesystem, "dev", ATTR_NOSUID | ATTR_NOEXEC)
    dev = f"{FRAME}/dev"
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
    _mounted(terminals, "dev/pts", ATTR_NOSUID | ATTR_NOEXEC)
    _shared_memory(f"{dev}/shm", first_uid)
    _mounted(NewFilesystem("mqueue"), "dev/mqueue", STRICT)


def _shared_memory(path: str, first_uid: int) -> None:
    """A folder of /dev as a mount of its own: for each file system the kernel keeps a place in every memory group."""
    os.chmod(path, 0o1777)
    os.chown(path, first_uid, first_uid)
    _as_mount(path, STRICT)


def _as_mount(path: str, attributes: int) -> None:
    tree = open_tree(path, recursive=True)
    mount_setattr(tree, attributes, recursive=True)
    move_mount(tree, path)
    os.close(tree)


def _own_boot_id(made: str, owner: int) -> None:
    tree = boot_id(made, owner)
    move_mount(tree, f"{FRAME}/{BOOT_ID}")
    os.close(tree)
    os.unlink(made)


def _read_only(path: str) -> None:
    with suppress(FileNotFoundError):  # not on every kernel
        _as_mount(f"{FRAME}/{path}", STRICT | ATTR_RDONLY)


def _hide(path: str) -> None:
    """Put an empty directory, or /dev/null, over a path of /proc or /sys (kernel files: no symlinks to fear)."""
    try:
        kind = os.lstat(f"{FRAME}/{path}").st_mode
    except OSError:  # not on every kernel
        return
    cover = open_tree(EMPTY if stat.S_ISDIR(kind) else f"{FRAME}/dev/null")
    move_mount(cover, f"{FRAME}/{path}")
    os.close(cover)
