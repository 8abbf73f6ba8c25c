"""Pages that are again what they were are shared again.

A fork copies a page before it writes to it, and keeps the copy also when it takes back what it wrote. Python does that
all the time: a count of references goes up, and down again. Two of five pages that an agent has to itself are, byte for
byte, the launcher's.

The kernel knows no way back, except for a page of a file: a private mapping that drops its copy shows the file's page.
So the launcher's writable memory is moved into a file that nobody can change any more (`share`), and an agent that has
nothing to do drops the copies that have become equal to it (`SharedPages.share_again`), and then waits for something to
do without going back to the interpreter, which would copy some thirty of them at once (`SharedPages.rest`).

Nothing else of the process may run meanwhile, the interpreter included: what it wrote between the look at a page and
the drop would be lost. So all are machine code, called with the signals held back; its source is `shared_pages.s`. It
changes no byte that the process can read: a dropped page is looked at once more, and filled again where something else
than the file came to light. It exists for x86-64. Elsewhere agents keep their copies.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # as in `agent`
import _thread
import ctypes
import fcntl
import os
from contextlib import suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_CODE = {
    "x86_64": bytes.fromhex(
        "535541544889fb4889f54989d44989f8498b30498b50084d8b50104c89e7b8120000000f054885c07e444801c64901c2"
        "4829c275e94983c0184939e872d2488b3b488b7308ba0300000041ba120000004d89e04c8b4b10b8090000000f05483b"
        "03750b4883c3184839eb72d231c0415c5d5bc3535541544155415641574151415057564989d44989cd4531fffc31ffbe"
        "00200000ba0300000041ba2200000049c7c0ffffffff4531c9b8090000000f05483d00f0ffff0f874b0100004989c64c"
        "8b442408498b28498b58084801eb4c89ef4c89f64889da4829ea48c1ea094989ea49c1ea09b8001000004839c2480f47"
        "d0b8110000000f054883f8080f8cb50000004883e0f84d89f04d8d0c06498b0048c1e83d83f80475694c89e7498db600"
        "100000ba00100000488b4424084989ea4c2b104c035010b8110000000f054839d0753fe8d000000075384889efbe0010"
        "0000ba04000000b81c0000000f054885c0751f49ffc7e8ad000000741549ffcf4889ef498db600100000b900020000f3"
        "48a54881c5001000004983c0084d39c80f8277ffffff4839dd0f822fffffff4c8b4424084983c0184c894424084c3b04"
        "240f8208ffffff4c89f7be00200000b80b0000000f05488b7c241085ff78354c8b5424184c8d4424584c8b7c246041b9"
        "08000000ba010000004883ec104889e6b8190100000f0585c0750549ffcf75f04883c4104c89f85e5f41584159415f41"
        "5e415d415c5d5bc34889ee498dbe00100000b900020000f348a7c3"
    )
}
_MOVE, _GIVE_BACK = 0, 0x73  # where the two functions begin
_PAGE = 4096
_READ, _WRITE, _EXECUTE = 1, 2, 4  # not from the mmap module: a library more to map in every fork
_ANONYMOUS = 0x22  # private
_TICK_MS = 1000
_MADV_POPULATE_READ = 22  # Linux 5.14
# Of Linux, filesystems/proc.rst: may be read and written, is accounted, was written to; huge pages may be used or not.
_PLAIN = frozenset(("rd", "wr", "mr", "mw", "me", "ac", "sd", "hg", "nh"))

_long, _address = ctypes.c_long, ctypes.c_void_p
_libc = ctypes.PyDLL(None, use_errno=True)
_mmap, _mprotect, _madvise = _libc.mmap, _libc.mprotect, _libc.madvise
_mmap.restype = _address
_MAP_FAILED = _address(-1).value
_Move = ctypes.PYFUNCTYPE(_long, _long, _long, _long)
_GiveBack = ctypes.PYFUNCTYPE(_long, _long, _long, _long, _long, _long, _long, ctypes.c_ulong, _long)
_ALL_SIGNALS = tuple(_signal.valid_signals())


class SharedPages:
    """The writable memory of a process as it was, for its forks."""

    __slots__ = ("_end", "_first", "_give_back", "_image", "_pagemap", "_regions")

    def __init__(self, image: int, regions: ctypes.Array[ctypes.c_long], give_back: Callable[..., int]) -> None:
        self._image = image
        self._regions = regions  # address, size and offset in the file of each
        self._first = ctypes.addressof(regions)
        self._end = self._first + ctypes.sizeof(regions)
        self._give_back = give_back
        self._pagemap = -1

    def begin(self, proc: int) -> tuple[int, int]:
        """In a fork that can still see it below `proc`, the host's /proc: open the map of its pages.

        Both descriptors that it returns must stay open. Raises `OSError`.
        """
        self._pagemap = os.open("self/pagemap", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
        return self._image, self._pagemap

    def share_again(self) -> int:
        """Drop every copy that is equal to what it was copied from. Returns how many pages those were."""
        return self._called(-1, 0, 0)

    def rest(self, epoll: int, patience_s: float) -> float:
        """`share_again`, then wait until the descriptor `epoll` has an event, which stays to be had, or a signal comes.

        No longer than `patience_s`, unless that is negative, and in pieces of a second at most, between which a
        freeze ends the piece only. Returns how long that can have taken without one. Raises `OSError`.
        """
        if patience_s < 0:
            self._called(epoll, -1, 1)
            return patience_s
        tick_ms = min(_TICK_MS, int(patience_s * 1000))
        ticks = max(1, int(patience_s * 1000) // _TICK_MS)
        left = self._called(epoll, tick_ms, ticks)
        return (ticks - max(0, left - 1)) * tick_ms / 1000

    def _called(self, epoll: int, tick_ms: int, ticks: int) -> int:
        held = _signal.pthread_sigmask(_signal.SIG_BLOCK, _ALL_SIGNALS)
        try:
            signals = sum(1 << number - 1 for number in held)
            said = self._give_back(self._first, self._end, self._image, self._pagemap, epoll, tick_ms, signals, ticks)
        finally:
            _signal.pthread_sigmask(_signal.SIG_SETMASK, held)
        if said < 0:
            raise OSError(-said, "no page to compare with")
        return said


def share(proc: int) -> SharedPages | None:
    """Move this process's writable memory to where its forks can share it, in a thread that is its only one.

    `proc`: /proc, open. None where this cannot be done: on another processor, or where the kernel forbids code that no
    file holds; the memory is then where it was.
    """
    try:
        code = _loaded(_CODE[os.uname().machine])
        regions = _table(_writable(proc))
        image = _moved(code, regions)
        pages = SharedPages(image, regions, _GiveBack(code + _GIVE_BACK))
        _, pagemap = pages.begin(proc)
    except (KeyError, OSError):
        return None
    with suppress(OSError):  # it saves this process a few, and its forks nothing
        pages.share_again()
    os.close(pagemap)
    for at in range(0, len(regions), 3):  # a fork that finds a page mapped need not ask for it
        _madvise(_address(regions[at]), _long(regions[at + 1]), _MADV_POPULATE_READ)
    return pages


def _loaded(code: bytes) -> int:
    address = _mmap(None, _long(_PAGE), _READ | _WRITE, _ANONYMOUS, -1, _long(0))
    if address == _MAP_FAILED:
        raise OSError(ctypes.get_errno(), "mmap")
    ctypes.memmove(address, code, len(code))
    if _mprotect(_address(address), _long(_PAGE), _READ | _EXECUTE) < 0:
        raise OSError(ctypes.get_errno(), "mprotect")
    return int(address)


def _writable(proc: int) -> Iterator[tuple[int, int]]:
    """Where this process writes, but for its stack and what the kernel writes to: the thread's own block.

    Only memory of the plainest kind. A fork must not have what the kernel is told to wipe or to leave out: with the
    same state of the C library's random numbers (glibc 2.41) all forks would draw the same ones.
    """
    thread = _thread.get_ident()  # the address of that block, in every C library
    first = end = 0
    with open(os.open("self/smaps", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)) as maps:
        for line in maps:
            words = line.split()
            if words[0] == "VmFlags:":
                if first < end and _PLAIN.issuperset(words[1:]):
                    yield first, end
                first = end = 0
            elif words[0][-1] != ":":
                name = words[5] if len(words) > 5 else ""
                if words[1] == "rw-p" and (name == "[heap]" or name[:1] != "["):
                    first, end = (int(word, 16) for word in words[0].split("-"))
                    if first <= thread < end:
                        first = end = 0


def _table(regions: Iterable[tuple[int, int]]) -> ctypes.Array[ctypes.c_long]:
    rows: list[int] = []
    offset = 0
    for first, end in regions:
        rows += first, end - first, offset
        offset += end - first
    return (_long * len(rows))(*rows)


def _moved(code: int, regions: ctypes.Array[ctypes.c_long]) -> int:
    """The sealed file that these regions are private mappings of from here on."""
    image = os.memfd_create("launcher", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    first = ctypes.addressof(regions)
    held = _signal.pthread_sigmask(_signal.SIG_BLOCK, _ALL_SIGNALS)
    result = _Move(code + _MOVE)(first, first + ctypes.sizeof(regions), image)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, held)
    if result < 0:
        os.close(image)
        raise OSError(-result, "cannot move memory into a file")
    fcntl.fcntl(
        image, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
    )
    return image
