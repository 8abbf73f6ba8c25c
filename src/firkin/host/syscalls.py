"""Linux system calls that Python's `os` does not have, by ctypes.

Used by single-threaded launchers (`drivers.namespaces`) after a fork, so: no
imports at call time, no GIL games (`PyDLL`), errno read at once. Every failure
is an `OSError` that names the call.

Numbers: calls from 424 on are the same on all architectures; the older ones
come from the kernel's own tables for x86-64 and arm64.
"""

from __future__ import annotations

import ctypes
import os
import struct

_libc = ctypes.PyDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long

_NUMBERS = {
    "x86_64": {
        "mount": 165, "umount2": 166, "unshare": 272, "setns": 308, "pivot_root": 155,
        "prctl": 157, "capget": 125, "capset": 126, "seccomp": 317, "sethostname": 170,
        "finit_module": 313,
    },
    "aarch64": {
        "mount": 40, "umount2": 39, "unshare": 97, "setns": 268, "pivot_root": 41,
        "prctl": 167, "capget": 90, "capset": 91, "seccomp": 277, "sethostname": 161,
        "finit_module": 273,
    },
}  # fmt: skip
_NEWER = {
    "pidfd_send_signal": 424, "open_tree": 428, "move_mount": 429, "fsopen": 430,
    "fsconfig": 431, "fsmount": 432, "close_range": 436, "mount_setattr": 442,
}  # fmt: skip
MACHINE = os.uname().machine
_NR = {**_NUMBERS.get(MACHINE, {}), **_NEWER}

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_BIND, MS_MOVE, MS_REC, MS_PRIVATE = 0x20, 0x1000, 0x2000, 0x4000, 0x40000
MNT_DETACH = 2

ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV, ATTR_NOEXEC, ATTR_IDMAP = 1, 2, 4, 8, 0x100000

_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_AT_RECURSIVE = 0x8000
_OPEN_TREE_CLONE = 1
_OPEN_TREE_CLOEXEC = 0x80000
_FSOPEN_CLOEXEC = 1
_FSMOUNT_CLOEXEC = 1
_FSCONFIG_SET_FLAG, _FSCONFIG_SET_STRING, _FSCONFIG_SET_FD, _FSCONFIG_CMD_CREATE = 0, 1, 5, 6
_MOVE_MOUNT_F_EMPTY_PATH = 4
_MOVE_MOUNT_T_EMPTY_PATH = 0x40

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_KEEPCAPS = 8
PR_CAPBSET_DROP = 24
PR_SET_SECUREBITS = 28
PR_SET_NO_NEW_PRIVS = 38
PR_SET_THP_DISABLE = 41
SECBIT_NO_SETUID_FIXUP = 4

_CAPABILITY_VERSION_3 = 0x20080522
_SECCOMP_SET_MODE_FILTER = 1


def _call(name: str, *arguments: int | bytes | ctypes._SimpleCData[int] | object | None) -> int:
    number = _NR.get(name)
    if number is None:
        raise OSError(38, f"{name} is not known on {MACHINE}")
    packed = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    result: int = _syscall(ctypes.c_long(number), *packed)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
    return result


def mount(source: str, target: str, kind: str | None, flags: int = 0, data: str | None = None) -> None:
    _call(
        "mount",
        source.encode(),
        target.encode(),
        kind.encode() if kind else None,
        flags,
        data.encode() if data else None,
    )


def umount(target: str, flags: int = MNT_DETACH) -> None:
    _call("umount2", target.encode(), flags)


def load_module(fd: int) -> None:
    """Put the kernel module in the file `fd` into this kernel; what it depends on must be there already."""
    _call("finit_module", fd, b"", 0)


def unshare(flags: int) -> None:
    _call("unshare", flags)


def setns(fd: int, kind: int) -> None:
    _call("setns", fd, kind)


def pivot_into_cwd() -> None:
    """Make the working directory the root and detach the old root (pivot_root(2), NOTES: ``.``, ``.``)."""
    _call("pivot_root", b".", b".")
    umount(".")
    os.chdir("/")


def open_tree(path: str, *, recursive: bool = False) -> int:
    """A detached copy of the mount at `path`, as a descriptor. It vanishes with its last descriptor."""
    flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC | (_AT_RECURSIVE if recursive else 0)
    return _call("open_tree", _AT_FDCWD, path.encode(), flags)


def move_mount(fd: int, target: str) -> None:
    _call("move_mount", fd, b"", _AT_FDCWD, target.encode(), _MOVE_MOUNT_F_EMPTY_PATH)


def move_mount_onto(fd: int, target: int) -> None:
    """As `move_mount`, onto what the descriptor `target` names: no path is resolved, so no symlink can interfere."""
    flags = _MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_EMPTY_PATH
    _call("move_mount", fd, b"", target, b"", flags)


def mount_setattr(fd: int, attributes: int, *, user_namespace: int = 0, recursive: bool = False) -> None:
    """Set `attributes` on the mount `fd`. With ATTR_IDMAP, map its owners through `user_namespace` (a descriptor)."""
    packed = struct.pack("=QQQQ", attributes, 0, 0, user_namespace)
    flags = _AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0)
    _call("mount_setattr", fd, b"", flags, packed, len(packed))


class NewFilesystem:
    """A file system being configured by fsopen(2): options, then `mount`."""

    __slots__ = ("fd",)

    def __init__(self, kind: str) -> None:
        self.fd = _call("fsopen", kind.encode(), _FSOPEN_CLOEXEC)

    def option(self, key: str, value: str) -> None:
        _call("fsconfig", self.fd, _FSCONFIG_SET_STRING, key.encode(), value.encode(), 0)

    def flag(self, key: str) -> None:
        _call("fsconfig", self.fd, _FSCONFIG_SET_FLAG, key.encode(), None, 0)

    def descriptor(self, key: str, fd: int) -> None:
        _call("fsconfig", self.fd, _FSCONFIG_SET_FD, key.encode(), None, fd)

    def mount(self, attributes: int = 0) -> int:
        """Create it and return a detached mount; the configuration descriptor is closed in any case."""
        try:
            _call("fsconfig", self.fd, _FSCONFIG_CMD_CREATE, None, None, 0)
            return _call("fsmount", self.fd, _FSMOUNT_CLOEXEC, attributes)
        finally:
            os.close(self.fd)


def close_all_but(keep: tuple[int, ...]) -> None:
    """Close every descriptor from 3 on that is not in `keep`."""
    first = 3
    for fd in sorted(keep):
        if fd > first:
            _call("close_range", first, fd - 1, 0)
        first = max(first, fd + 1)
    _call("close_range", first, 0x7FFFFFFF, 0)


def prctl(option: int, argument: int | bytes = 0) -> None:
    _call("prctl", option, argument, 0, 0, 0)


def drop_bounding_set() -> None:
    """No program that this process becomes can have any capability. /proc must be there."""
    for number in range(last_capability() + 1):
        prctl(PR_CAPBSET_DROP, number)


def set_capabilities(mask: int, *, last: int) -> None:
    """Permitted and effective set become `mask`, inheritable none, bounding set no more than `mask`."""
    for number in range(last + 1):
        if not mask >> number & 1:
            prctl(PR_CAPBSET_DROP, number)
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    low, high = mask & 0xFFFFFFFF, mask >> 32
    _call("capset", header, struct.pack("=6I", low, low, 0, high, high, 0))


def raise_permitted() -> None:
    """Make effective what is permitted: a change of user keeps the one (PR_SET_KEEPCAPS) and drops the other."""
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    sets = ctypes.create_string_buffer(24)
    _call("capget", header, sets)
    _, low, _, _, high, _ = struct.unpack("=6I", sets.raw)
    _call("capset", header, struct.pack("=6I", low, low, 0, high, high, 0))


def last_capability() -> int:
    with open("/proc/sys/kernel/cap_last_cap") as file:
        return int(file.read())


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


class SeccompProgram:
    """A compiled filter held ready, so that loading it is one system call."""

    __slots__ = ("_buffer", "_program")

    def __init__(self, blob: bytes) -> None:
        self._buffer = ctypes.create_string_buffer(blob, len(blob))
        self._program = _Program(len(blob) // 8, ctypes.addressof(self._buffer))

    def load(self) -> None:
        """Needs CAP_SYS_ADMIN in the current user namespace, or no_new_privs."""
        _call("seccomp", _SECCOMP_SET_MODE_FILTER, 0, ctypes.byref(self._program))


def sethostname(name: str) -> None:
    encoded = name.encode()
    _call("sethostname", encoded, len(encoded))


def kill_pidfd(fd: int, signal: int) -> bool:
    """Send `signal`; False when the process is already gone."""
    try:
        _call("pidfd_send_signal", fd, signal, None, 0)
    except ProcessLookupError:
        return False
    return True
