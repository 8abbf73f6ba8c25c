"""The threads of another process, held still and read: ptrace(2), of which nothing is used that changes them.

A thread that is held was interrupted in a system call or between two instructions; let go, it does the call again
or goes on, as after any signal without a handler. When the holder dies, the kernel lets go.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import NamedTuple

from firkin.host.syscalls import MACHINE

# linux/ptrace.h
_SEIZE, _INTERRUPT, _DETACH, _CONT = 0x4206, 0x4207, 17, 7
_GETREGSET, _GETSIGMASK, _SECCOMP_GET_FILTER, _GET_RSEQ = 0x4204, 0x420A, 0x420C, 0x420F
_EVENT_STOP = 128
_NT_PRSTATUS, _NT_X86_XSTATE = 1, 0x202  # linux/elf.h
_WALL = 0x40000000

_HELD_WITHIN_S = 1.0
_LOOKS_EVERY_S = 0.00005
_MOST_THREADS = 64  # as many as the launcher's limit on its processes allows
_MOST_FILTERS = 32
_MOST_INSTRUCTIONS = 4096  # BPF_MAXINSNS
_MOST_VECTORS = 16384
_AGAIN = (-512, -513, -514, -516)  # ERESTARTSYS and its like: what an interrupted call returns to the kernel itself
_SYSCALL_BYTES = 2

_libc = ctypes.PyDLL(None, use_errno=True)  # no call waits: another thread of Python would only come in between
_ptrace = _libc.ptrace
_ptrace.restype = ctypes.c_long
_ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


class Registers(NamedTuple):
    """General registers, in the order of user_regs_struct (asm/user_64.h)."""

    r15: int
    r14: int
    r13: int
    r12: int
    rbp: int
    rbx: int
    r11: int
    r10: int
    r9: int
    r8: int
    rax: int
    rcx: int
    rdx: int
    rsi: int
    rdi: int
    orig_rax: int
    rip: int
    cs: int
    eflags: int
    rsp: int
    ss: int
    fs_base: int
    gs_base: int
    ds: int
    es: int
    fs: int
    gs: int

    def resumed(self) -> Registers:
        """As they must be for the interrupted call, if it was one, to be made again by somebody else."""
        if _signed(self.orig_rax) < 0 or _signed(self.rax) not in _AGAIN:
            return self
        return self._replace(rax=self.orig_rax, rip=self.rip - _SYSCALL_BYTES & (1 << 64) - 1)


_REGISTERS = struct.Struct(f"={len(Registers._fields)}Q")


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldThread:
    """`own_id` is its id as it knows it itself; `vectors` its floating point state, as XSAVE lays it out.

    `restartable` is where the C library keeps what rseq(2) needs, as address, length and signature; 0 for none.
    """

    own_id: int
    registers: Registers
    vectors: bytes
    blocked: int
    restartable: tuple[int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldProcess:
    """`threads`: first the one that the process began with. `filters`: of system calls, the newest first."""

    threads: tuple[HeldThread, ...]
    filters: tuple[bytes, ...]


def can_hold() -> bool:
    """Whether this is known for the processor at all; a host may refuse it all the same."""
    return MACHINE == "x86_64"


@contextmanager
def held(pid: int) -> Iterator[HeldProcess]:
    """Hold all threads of the process `pid`, in a thread of the caller that ends soon after: with its end the kernel
    lets go of those that could not be let go, because they did not stop.

    Raises `OSError`: `ProcessLookupError` for one that is gone, `PermissionError` where the host forbids it,
    `TimeoutError` for one that does not stop within a second.
    """
    threads: list[int] = []
    until = time.monotonic() + _HELD_WITHIN_S
    try:
        while new := sorted(_threads(pid) - set(threads)):
            if len(threads) + len(new) > _MOST_THREADS:
                raise OSError(errno.E2BIG, "a process has more threads than are expected")
            for thread in new:
                _ask(_SEIZE, thread)
                threads.append(thread)
                _ask(_INTERRUPT, thread)
                _wait(thread, until)
        read = sorted(threads, key=lambda thread: (thread != pid, thread))
        yield HeldProcess(threads=tuple(_thread(pid, thread) for thread in read), filters=tuple(_filters(pid)))
    finally:
        for thread in sorted(threads, key=lambda thread: thread == pid):  # a leader ends last
            with suppress(OSError):
                _ask(_DETACH, thread)


def _threads(pid: int) -> set[int]:
    return {int(name) for name in os.listdir(f"/proc/{pid}/task")}


def _wait(thread: int, until: float) -> None:
    while True:
        changed, status = os.waitpid(thread, os.WNOHANG | _WALL)
        if changed and not os.WIFSTOPPED(status):
            raise ProcessLookupError(errno.ESRCH, "a thread ended")
        if changed and status >> 16 == _EVENT_STOP:
            return
        if changed:  # about to be given a signal
            _ask(_CONT, thread, data=os.WSTOPSIG(status))
        if time.monotonic() > until:
            raise TimeoutError(errno.ETIMEDOUT, "a thread does not stop")
        if not changed:
            time.sleep(_LOOKS_EVERY_S)


def _thread(pid: int, thread: int) -> HeldThread:
    general = _set_of_registers(thread, _NT_PRSTATUS)
    if len(general) != _REGISTERS.size:
        raise OSError(errno.EINVAL, "a thread is in another mode than 64 bits")
    return HeldThread(
        own_id=_own_id(pid, thread),
        registers=Registers(*_REGISTERS.unpack(general)),
        vectors=_set_of_registers(thread, _NT_X86_XSTATE),
        blocked=_blocked(thread),
        restartable=_restartable(thread),
    )


def _own_id(pid: int, thread: int) -> int:
    for name, value in status_of(f"{pid}/task/{thread}"):
        if name == b"NSpid":
            return int(value.split()[-1])
    return thread


def status_of(process: str) -> Iterator[tuple[bytes, bytes]]:
    """What /proc/PID/status says, line by line. A thread's name, which it chooses, can hold any byte but these."""
    with open(f"/proc/{process}/status", "rb") as file:
        for line in file.read().split(b"\n"):
            name, _, value = line.partition(b":")
            yield name, value.strip()


def _set_of_registers(thread: int, kind: int) -> bytes:
    buffer = ctypes.create_string_buffer(_MOST_VECTORS)
    place = (ctypes.c_size_t * 2)(ctypes.addressof(buffer), _MOST_VECTORS)
    _ask(_GETREGSET, thread, kind, ctypes.addressof(place))
    return buffer.raw[: place[1]]


def _blocked(thread: int) -> int:
    mask = ctypes.c_uint64()
    _ask(_GETSIGMASK, thread, ctypes.sizeof(mask), ctypes.addressof(mask))
    return mask.value


def _restartable(thread: int) -> tuple[int, int, int]:
    """Linux 5.13; before, none is known, and no C library of that time needs it."""
    said = ctypes.create_string_buffer(24)
    try:
        _ask(_GET_RSEQ, thread, len(said), ctypes.addressof(said))
    except OSError as error:
        if error.errno == errno.EIO:
            return 0, 0, 0
        raise
    address, length, signature = struct.unpack_from("=QII", said.raw)
    return address, length, signature


def _filters(thread: int) -> Iterator[bytes]:
    """`OSError` where they cannot be read, which must not be taken for there being none."""
    for number in range(_MOST_FILTERS):
        buffer = ctypes.create_string_buffer(8 * _MOST_INSTRUCTIONS)
        try:
            count = _ask(_SECCOMP_GET_FILTER, thread, number, ctypes.addressof(buffer))
        except FileNotFoundError:
            return
        except OSError as error:
            if number == 0 and error.errno == errno.EINVAL:  # it has none at all
                return
            raise
        yield buffer.raw[: 8 * count]
    raise OSError(errno.E2BIG, "a process has more filters than are expected")


def _ask(request: int, thread: int, address: int = 0, data: int = 0) -> int:
    result: int = _ptrace(request, thread, address, data)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"ptrace: {os.strerror(code)}")
    return result


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value
