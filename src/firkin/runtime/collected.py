"""Output put together again, within a bound."""

from __future__ import annotations

MAX_COLLECTED = 16 * 1024 * 1024


class Collected:
    """Keeps the first `limit` bytes and remembers whether there were more."""

    def __init__(self, limit: int = MAX_COLLECTED) -> None:
        self._room = limit
        self._parts: list[bytes] = []
        self.truncated = False

    def add(self, data: bytes) -> None:
        self.truncated = self.truncated or len(data) > self._room
        kept = data[: self._room]
        self._room -= len(kept)
        if kept:
            self._parts.append(kept)

    def value(self) -> bytes:
        return b"".join(self._parts)
