"""A program that makes the process that runs it into another one: with the memory, descriptors and threads of that.

It is an ELF file without a library: machine code (`revival.s`), a table of system calls that it makes one after the
other, and what those point to. The last of them give each thread its registers, and from then on nothing of this
program runs any more. A call with another result than it must have ends the process with `FAILED`.

Linux has the older name checkpoint and restore for this. What is needed here is a small part of it, quick enough for
a create, and without rights: whatever a process without rights may do to itself.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence

from firkin.drivers.qemu.warm.held_threads import HeldThread

FAILED = 90

# Where nothing of an ordinary process on x86-64 is: far from its program below and from its libraries above.
BASE = 0x1000_0000_0000
_END = BASE + (8 << 20)
LAST_OWN = BASE + (4 << 30)  # from `_END` on nothing, so that the program's break (brk(2)) cannot move: it is another's
_ASIDE = LAST_OWN + (1 << 30)  # where the vDSO waits while all else is unmapped
_ASIDE_END = _ASIDE + (16 << 20)
LAST = 0x7FFF_FFFF_F000  # TASK_SIZE

_CODE = bytes.fromhex(
    "488b0c24488d54cc10488b024883c2084885c075f4488b024c8b62084883c2104885c074754883f82175ea488d1d4e01"
    "0000488b034885c07855488b7b08488b7310488b53184c8b53204c8b43284c8b4b30f643380174034c01e70f05f64338"
    "02740a4885c075054889e3ebc5f64338047408483b43407521eb0ef64338087508483d00f0ffff77114883c348eba348"
    "8b6308b80f0000000f05b8e7000000bf5a0000000f05"
)
_CODE_BYTES = 0x180
_TABLE = 0x1000  # in the file, and as far above BASE; the code lies before it, the header before that
_DATA = 0x10_0000
_MOST_DATA = 4 << 20
_RECORD = struct.Struct("=q6QQQ")
_WORD = (1 << 64) - 1
_READ, _WRITE, _EXECUTE = 4, 2, 1  # of an ELF segment
_FROM_VDSO, _THREAD, _EXACTLY, _MAY_FAIL = 1, 2, 4, 8

# asm/unistd_64.h
_MMAP, _CLOSE, _MUNMAP, _SIGACTION, _MREMAP, _CLONE, _PRCTL, _ARCH_PRCTL = 9, 3, 11, 13, 25, 56, 157, 158
_SET_TID_ADDRESS, _OPENAT, _SIGNALFD4, _EVENTFD2, _DUP3, _SECCOMP, _RSEQ = 218, 257, 289, 290, 292, 317, 334

PRIVATE, _FIXED, _ANONYMOUS, _NORESERVE = 0x02, 0x10, 0x20, 0x4000
_MOVE_THERE = 3  # MREMAP_MAYMOVE, MREMAP_FIXED
_AT_FDCWD = -100
_CLOEXEC, _NONBLOCK = 0o2000000, 0o4000
_PR_SET_NAME = 15
_ARCH_SET_FS = 0x1002
_SIG_IGN = 1
# CLONE_VM, _FS, _FILES, _SIGHAND, _THREAD, _SYSVSEM, _SETTLS, _PARENT_SETTID, _CHILD_CLEARTID: as pthread_create does
_AS_THREADS = 0x100 | 0x200 | 0x400 | 0x800 | 0x10000 | 0x40000 | 0x80000 | 0x100000 | 0x200000
THREAD_ID = 0x2D0  # of glibc on x86-64, where a thread keeps its own id (struct pthread, `tid`)

# asm/sigcontext.h, asm/ucontext.h
_CONTEXT = struct.Struct("=QQQIIQ")
_GENERAL = struct.Struct("=18Q4H5Q64xQ")
_ORDER = ("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rdi", "rsi", "rbp", "rbx", "rdx", "rax", "rcx", "rsp")
_XSTATE, _HAS_SS, _STRICT_SS = 1, 2, 4
_NO_OTHER_STACK = 2  # SS_DISABLE
_USER_CS, _USER_SS = 0x33, 0x2B
_MAGIC, _LAST_MAGIC = 0x46505853, 0x46505845
_SOFTWARE = struct.Struct("=IIQI28x")
_SOFTWARE_AT, _FEATURES_AT, _IN_USE_AT = 464, 464, 512  # the second: where ptrace says what the processor has
_OLD_FEATURES, _OLD_BYTES = 0b111, 832  # x87, SSE, AVX
_KEYS = 1 << 9  # protection keys, which are as they are in every process
_TILES_FROM, _BEFORE_TILES = 17, 2696  # AMX, which a process has to ask for
_ALIGNED = 64


class Revival:
    """Put together call by call. Addresses that calls point to are those of `data`."""

    def __init__(self) -> None:
        self._table = bytearray()
        self._data = bytearray()

    # -- memory ---------------------------------------------------------------------------------

    def clear(self, kept: Sequence[tuple[int, int]], vdso: int) -> None:
        """Unmap all but this program; what the kernel gave the process goes to where the other one has it.

        `kept` are the other one's ranges of that, one of which is its vDSO, at `vdso`.
        """
        first, last = kept[0][0], kept[-1][1]
        if last - first > _ASIDE_END - _ASIDE or (first < LAST_OWN and last > BASE):
            raise OverflowError("what the kernel gives a process lies elsewhere than is known")
        for start, end in kept:
            aside = _ASIDE + start - first
            self._exactly(aside, _MREMAP, start - vdso, end - start, end - start, _MOVE_THERE, aside, kind=_FROM_VDSO)
        self._call(_MUNMAP, 0, BASE)
        self._call(_MUNMAP, LAST_OWN, _ASIDE - LAST_OWN)
        self._call(_MUNMAP, _ASIDE_END, LAST - _ASIDE_END)
        self.map_nothing(_END, LAST_OWN, 0)
        for start, end in kept:
            aside = _ASIDE + start - first
            self._exactly(start, _MREMAP, aside, end - start, end - start, _MOVE_THERE, start)

    def map_nothing(self, start: int, end: int, protection: int) -> None:
        flags = PRIVATE | _FIXED | _ANONYMOUS | _NORESERVE
        self._exactly(start, _MMAP, start, end - start, protection, flags, -1, 0)

    def map_file(self, start: int, end: int, protection: int, fd: int, offset: int) -> None:
        flags = PRIVATE | _FIXED | _NORESERVE
        self._exactly(start, _MMAP, start, end - start, protection, flags, fd, offset)

    # -- descriptors ----------------------------------------------------------------------------

    def open(self, path: bytes, fd: int) -> None:
        """For reading. `fd` must be the lowest that is free."""
        self._exactly(fd, _OPENAT, _AT_FDCWD, self.data(path + b"\0"), _CLOEXEC)

    def event_counter(self, fd: int, count: int, flags: int) -> None:
        self._exactly(fd, _EVENTFD2, count, flags & _NONBLOCK | _CLOEXEC)

    def signal_reader(self, fd: int, mask: int, flags: int) -> None:
        at = self.data(mask.to_bytes(8, "little"))
        self._exactly(fd, _SIGNALFD4, -1, at, 8, flags & _NONBLOCK | _CLOEXEC)

    def duplicate(self, fd: int, to: int) -> None:
        self._exactly(to, _DUP3, fd, to, _CLOEXEC)

    def close(self, fd: int) -> None:
        self._call(_CLOSE, fd)

    def close_if_open(self, fd: int) -> None:
        self._call(_CLOSE, fd, kind=_MAY_FAIL)

    # -- the process ----------------------------------------------------------------------------

    def name(self, name: bytes) -> None:
        self._call(_PRCTL, _PR_SET_NAME, self.data(name + b"\0"))

    def ignore(self, number: int) -> None:
        self._call(_SIGACTION, number, self.data(struct.pack("=4Q", _SIG_IGN, 0, 0, 0), aligned=8), 0, 8)

    def filter(self, instructions: bytes) -> None:
        """Of system calls. What comes after it must pass it."""
        program = struct.pack("=H6xQ", len(instructions) // 8, self.data(instructions, aligned=8))
        self._call(_SECCOMP, 1, 0, self.data(program, aligned=8))

    def start(self, thread: HeldThread) -> None:
        """A thread that goes on where that one stood."""
        base = thread.registers.fs_base
        own = Revival()
        own._restartable(thread)
        at = self.data(bytes(own._table) + self._end(thread), aligned=8)
        self._call(_CLONE, _AS_THREADS, at, base + THREAD_ID, base + THREAD_ID, base, kind=_THREAD)

    def become(self, thread: HeldThread) -> None:
        """The last call: the process's own thread goes on where that one stood."""
        self._table += self._end(thread)

    def prepare(self, thread: HeldThread) -> None:
        """What the process's own thread needs before it goes on where `thread` stood."""
        base = thread.registers.fs_base
        self._call(_ARCH_PRCTL, _ARCH_SET_FS, base)
        self._call(_SET_TID_ADDRESS, base + THREAD_ID)
        self._restartable(thread)

    def _restartable(self, thread: HeldThread) -> None:
        """A C library that finds none again does without: the processor's number is asked of the kernel."""
        address, length, signature = thread.restartable
        if address:
            self._call(_RSEQ, address, length, 0, signature, kind=_MAY_FAIL)

    def _end(self, thread: HeldThread) -> bytes:
        at = self._place(_ALIGNED)
        return _record(-1, self.data(_context(thread, at), aligned=_ALIGNED))

    # -- the file -------------------------------------------------------------------------------

    def data(self, content: bytes, *, aligned: int = 1) -> int:
        """Where that will be."""
        at = self._place(aligned)
        self._data += bytes(at - BASE - _DATA - len(self._data)) + content
        if len(self._data) > _MOST_DATA:
            raise OverflowError("a process needs more to become another than is expected")
        return at

    def _place(self, aligned: int) -> int:
        at = BASE + _DATA + len(self._data)
        return at + -at % aligned

    def write(self, file: int) -> None:
        """Into the empty file of that descriptor. `OSError`, `OverflowError`."""
        if len(self._table) > _DATA - _TABLE:
            raise OverflowError("a process needs more calls to become another than are expected")
        begin = _TABLE - _CODE_BYTES
        size = _DATA + len(self._data)
        identity = b"\x7fELF\x02\x01\x01" + bytes(9)
        header = identity + struct.pack("=HHIQQQIHHHHHH", 2, 62, 1, BASE + begin, 64, 0, 0, 64, 56, 2, 0, 0, 0)
        segment = struct.pack("=IIQQQQQQ", 1, _READ | _EXECUTE, 0, BASE, BASE, size, size, 0x1000)
        segment += struct.pack("=IIQQQQQQ", 1, _READ | _WRITE, 0, _END, _END, 0, 0x1000, 0x1000)  # the break is above
        os.pwrite(file, (header + segment).ljust(begin, b"\0") + _CODE.ljust(_CODE_BYTES, b"\0") + self._table, 0)
        os.pwrite(file, self._data, _DATA)

    def _call(self, number: int, *arguments: int, kind: int = 0) -> None:
        self._table += _record(number, *arguments, kind=kind)

    def _exactly(self, result: int, number: int, *arguments: int, kind: int = 0) -> None:
        self._table += _record(number, *arguments, kind=kind | _EXACTLY, result=result)


def _record(number: int, *arguments: int, kind: int = 0, result: int = 0) -> bytes:
    words = [argument & _WORD for argument in arguments]
    return _RECORD.pack(number, *words, *[0] * (6 - len(words)), kind, result & _WORD)


def _context(thread: HeldThread, at: int) -> bytes:
    """What rt_sigreturn(2) restores, to lie at the address `at`: struct ucontext, and behind it the vectors."""
    registers = thread.registers.resumed()
    head = _CONTEXT.pack(_XSTATE | _HAS_SS | _STRICT_SS, 0, 0, _NO_OTHER_STACK, 0, 0)
    size = len(head) + _GENERAL.size
    vectors_at = at + size + -(at + size) % _ALIGNED
    segments = (_USER_CS, 0, 0, _USER_SS)
    ordered = (*(getattr(registers, name) for name in _ORDER), registers.rip, registers.eflags)
    general = _GENERAL.pack(*ordered, *segments, 0, 0, 0, 0, vectors_at, thread.blocked)
    return (head + general).ljust(vectors_at - at, b"\0") + _vectors(thread.vectors)


def _vectors(said: bytes) -> bytes:
    """As the kernel writes them for a signal's handler, whose words about it stand where ptrace has the processor's."""
    (has,) = struct.unpack_from("=Q", said, _FEATURES_AT)
    (in_use,) = struct.unpack_from("=Q", said, _IN_USE_AT)
    size, features = len(said), has & ~_KEYS
    if not in_use & ~(_OLD_FEATURES | _KEYS) and size >= _OLD_BYTES:
        size, features = _OLD_BYTES, has & _OLD_FEATURES
    elif has >> _TILES_FROM and not in_use >> _TILES_FROM:
        size, features = min(size, _BEFORE_TILES), features & (1 << _TILES_FROM) - 1
    vectors = bytearray(said[:size])
    struct.pack_into("=Q", vectors, _IN_USE_AT, in_use & features)
    _SOFTWARE.pack_into(vectors, _SOFTWARE_AT, _MAGIC, size + 4, features, size)
    return bytes(vectors) + _LAST_MAGIC.to_bytes(4, "little")
