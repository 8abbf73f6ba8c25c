"""System calls that the standard library does not offer, through ctypes.

`PyDLL` keeps the interpreter lock and costs less; every symbol is looked up at
import, because nothing may be loaded after the fork.
"""

from __future__ import annotations

import ctypes
import os

_libc = ctypes.PyDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
_prctl = _libc.prctl
_inotify_init1 = _libc.inotify_init1
_inotify_add_watch = _libc.inotify_add_watch
_inotify_rm_watch = _libc.inotify_rm_watch
_fstatfs = _libc.fstatfs
_long = ctypes.c_long
# Array types are made here: one that nobody keeps is made anew for each call, which copies 40 pages of a fork.
_Header = ctypes.c_uint32 * 2
_Sets = ctypes.c_uint32 * 6
_How = ctypes.c_uint64 * 3
_Statfs = ctypes.c_long * 32

_MACHINE = os.uname().machine
_CAPGET, _CAPSET = (90, 91) if _MACHINE in ("aarch64", "riscv64") else (125, 126)
_OPENAT2 = 437  # the same number on every architecture
_CLOSE_RANGE = 436
_CLOSE_RANGE_CLOEXEC = 4
_AT_FDCWD = -100
_RESOLVE_NO_MAGICLINKS = 0x02
_CAPABILITY_V3 = 0x20080522

PR_SET_DUMPABLE = 4
PR_SET_KEEPCAPS = 8
PR_SET_NAME = 15
PR_SET_NO_NEW_PRIVS = 38

PROC_MAGIC = 0x9FA0
NETWORK_MAGICS = frozenset((0x6969, 0x517B, 0xFF534D42, 0xFE534D42, 0x65735546))  # NFS, SMB, CIFS, SMB2, FUSE


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def prctl(option: int, value: int) -> None:
    _check(_prctl(option, _long(value), _long(0), _long(0), _long(0)))


def capabilities() -> ctypes.Array[ctypes.c_uint32]:
    """This process's effective, permitted and inheritable sets, as the kernel lays them out."""
    header = _Header(_CAPABILITY_V3, 0)
    sets = _Sets()
    _check(_syscall(_long(_CAPGET), header, sets))
    return sets


def set_capabilities(sets: ctypes.Array[ctypes.c_uint32]) -> None:
    header = _Header(_CAPABILITY_V3, 0)
    _check(_syscall(_long(_CAPSET), header, sets))


def close_on_exec(first: int) -> None:
    """Mark every open descriptor from `first` on."""
    _check(_syscall(_long(_CLOSE_RANGE), _long(first), _long(0x7FFFFFFF), _long(_CLOSE_RANGE_CLOEXEC)))


def open_plain(path: str, flags: int, mode: int = 0) -> int:
    """open(2) that follows no magic link of /proc: they lead out of the sandbox's own root (ELOOP)."""
    how = _How(flags, mode if flags & os.O_CREAT else 0, _RESOLVE_NO_MAGICLINKS)
    name = os.fsencode(path)
    if b"\0" in name:
        raise ValueError("embedded null byte")
    return _check(_syscall(_long(_OPENAT2), _long(_AT_FDCWD), ctypes.c_char_p(name), how, _long(24)))


def filesystem_magic(fd: int) -> int:
    buffer = _Statfs()
    _check(_fstatfs(fd, buffer))
    return buffer[0] & 0xFFFFFFFF


def inotify_open() -> int:
    return _check(_inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK))


def inotify_add(fd: int, path: bytes, mask: int) -> int:
    return _check(_inotify_add_watch(fd, ctypes.c_char_p(path), ctypes.c_uint32(mask)))


def inotify_remove(fd: int, watch: int) -> None:
    _inotify_rm_watch(fd, watch)  # EINVAL: the kernel was faster, because the directory is gone
