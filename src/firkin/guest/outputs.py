"""What a program writes: read, kept for later readers, and handed to the present ones."""

from __future__ import annotations

import os
from collections import deque
from contextlib import suppress
from fcntl import F_SETPIPE_SZ, fcntl

from firkin.guest.loop import READ
from firkin.wire.frames import CHUNK
from firkin.wire.operations import RETAINED_OUTPUT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from firkin.guest.loop import Loop
    from firkin.guest.processes import Process

_MERGE_BELOW = 8 * 1024
_MOST_PIECES = 4096
_MOST_AFTER_DEADLINE = 1 << 20
_FLOWING = 32 * 1024  # half of what a pipe holds
_LONG_PIPE = 1 << 20


class Retained:
    """The last `RETAINED_OUTPUT` bytes of both streams, in the order they were read."""

    __slots__ = ("_pieces", "_size", "truncated")

    def __init__(self) -> None:
        self._pieces: deque[tuple[int, bytes]] = deque()
        self._size = 0
        self.truncated = False

    def __len__(self) -> int:
        return self._size

    def add(self, kind: int, data: bytes) -> None:
        pieces = self._pieces
        self._size += len(data)
        if pieces and pieces[-1][0] == kind and len(pieces[-1][1]) + len(data) <= _MERGE_BELOW:
            data = pieces.pop()[1] + data  # else a program that writes single bytes fills memory with objects
        pieces.append((kind, data))
        while self._size - len(pieces[0][1]) >= RETAINED_OUTPUT or len(pieces) > _MOST_PIECES:
            self._size -= len(pieces.popleft()[1])
            self.truncated = True

    def pieces(self) -> list[tuple[int, bytes]]:
        """At most `RETAINED_OUTPUT` bytes."""
        pieces = list(self._pieces)
        if self._size > RETAINED_OUTPUT:
            self.truncated = True
            kind, data = pieces[0]
            pieces[0] = (kind, data[self._size - RETAINED_OUTPUT :])
        return pieces


class Output:
    """One pipe or terminal that a program writes to. `kind` is the frame kind its bytes travel as."""

    __slots__ = ("_budget", "_fd", "_loop", "_process", "_stretched", "kind")

    def __init__(self, loop: Loop, process: Process, fd: int, kind: int) -> None:
        os.set_blocking(fd, False)
        self._loop = loop
        self._process = process
        self._fd = fd
        self.kind = kind
        self._budget = _MOST_AFTER_DEADLINE
        self._stretched = False

    def listen(self) -> None:
        """Read when there is something to read and room for it."""
        if self._fd >= 0:
            self._loop.watch(self._fd, READ if self._process.room() else 0, self._ready)

    def _ready(self, _events: int) -> None:
        size = self.read_once()
        if not self._stretched and size >= _FLOWING:
            self._stretch()

    def _stretch(self) -> None:
        """A program that writes much gets a longer pipe: each look then finds more, and costs all who carry it less."""
        self._stretched = True
        with suppress(OSError):  # a terminal, or this user has too many long ones
            fcntl(self._fd, F_SETPIPE_SZ, _LONG_PIPE)

    def read_once(self) -> int:
        """Take one chunk; 0 when there is nothing to read or no room for it."""
        room = self._process.room()
        if not room or self._fd < 0:
            self.listen()
            return 0
        try:
            data = os.read(self._fd, min(room, CHUNK))
        except BlockingIOError:
            return 0
        except OSError:  # EIO: the last program left the terminal
            data = b""
        if not data:
            self.close()
            return 0
        self._process.took(self.kind, data)
        return len(data)

    def empty(self) -> None:
        """Take what a long pipe holds of a program that has ended: who asks for it now gets no more than is kept."""
        for _ in range(_LONG_PIPE // CHUNK if self._stretched else 0):
            if not self.read_once():
                return

    def wind_up(self) -> None:
        """The deadline killed the program: take what is there and close, though others may hold the other end."""
        while self._budget > 0 and self.read_once():
            self._budget -= CHUNK
        if self._process.room() or self._budget <= 0:
            self.close()

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            self._loop.forget(fd)
            os.close(fd)
            self._process.output_closed(self)
