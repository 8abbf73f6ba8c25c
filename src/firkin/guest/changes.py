"""What happened below a watched directory and has not been asked for yet: compact, in order, bounded.

Nobody may ever ask. What waits is memory of the sandbox, and a watch that gets
more than its share loses what comes later, which it then says.
"""

from __future__ import annotations

from collections import deque

_MOST_BYTES = 64 << 20
_MOST_BYTES_EACH = 32 << 20  # about 200,000 changes
_PLACE = 8
_CHANGE = 136

Change = tuple[str, str]
"""The kind, and the name relative to the watched directory, "" for itself."""


class Room:
    """What all watches may keep together. One change that many of them keep is there once."""

    __slots__ = ("_last", "left")

    def __init__(self) -> None:
        self.left = _MOST_BYTES
        self._last: Change = ("", "")

    def shared(self, change: Change) -> tuple[Change, int]:
        """The change to keep, and how many bytes that takes."""
        if change == self._last:
            return self._last, _PLACE
        self._last = change
        return change, _CHANGE + len(change[1])


class Changes:
    """Those of one watch, oldest first."""

    __slots__ = ("_bytes", "_kept", "_room")

    def __init__(self, room: Room) -> None:
        self._room = room
        self._kept: deque[Change] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, kind: str, name: str) -> bool:
        """False when there is no room for it."""
        change, size = self._room.shared((kind, name))
        if self._bytes + size > _MOST_BYTES_EACH or size > self._room.left:
            return False
        self._kept.append(change)
        self._bytes += size
        self._room.left -= size
        return True

    def take(self) -> Change:
        size = self._bytes // len(self._kept)
        self._bytes -= size
        self._room.left += size
        return self._kept.popleft()

    def clear(self) -> None:
        self._kept.clear()
        self._room.left += self._bytes
        self._bytes = 0
