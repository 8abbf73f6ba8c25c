"""Which server of this machine may use which slots.

Slots are handed out in blocks. A block is a file below /run/firkin/slots that
names the server's state directory and label. A server keeps its blocks over a
restart, because its sandboxes do too. A block whose server neither runs nor has
a living sandbox is taken over.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable
from pathlib import Path

from firkin.drivers.ground.numbers import SLOTS
from firkin.law.errors import CapacityRejected

BLOCK = 32
_FOLDER = Path("/run/firkin/slots")


class SlotLeases:
    """The blocks of the server called `label`. `in_use(label)` tells whether another server's sandboxes live."""

    def __init__(self, label: str, in_use: Callable[[str], bool], folder: Path = _FOLDER) -> None:
        self._label = label
        self._in_use = in_use
        self._folder = folder
        self._held: dict[int, int] = {}

    def recover(self) -> list[int]:
        """Take back the blocks of an earlier life; return their slots."""
        self._folder.mkdir(parents=True, exist_ok=True)
        slots: list[int] = []
        for block in range(SLOTS // BLOCK):
            if self._owner(block) == self._label and self._lock(block):
                slots += _slots(block)
        return slots

    def take(self) -> list[int]:
        """Lease one more block; `CapacityRejected` when the machine has none left."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for block in range(SLOTS // BLOCK):
            if block not in self._held and self._claim(block):
                return _slots(block)
        raise CapacityRejected("make a sandbox slot", "slots", requested=1, available=0)

    def release(self, keep: set[int]) -> None:
        """Give back every block without a slot in `keep`; the others stay ours, on disk."""
        for block, fd in list(self._held.items()):
            if not keep & set(_slots(block)):
                self._path(block).unlink(missing_ok=True)
            os.close(fd)
            del self._held[block]

    def _claim(self, block: int) -> bool:
        owner = self._owner(block)
        if owner not in ("", self._label) and self._in_use(owner):
            return False
        if not self._lock(block):
            return False
        owner = self._owner(block)  # again, now that nobody else can write it
        if owner not in ("", self._label) and self._in_use(owner):
            os.close(self._held.pop(block))
            return False
        fd = self._held[block]
        os.ftruncate(fd, 0)
        os.pwrite(fd, json.dumps({"label": self._label}).encode(), 0)
        return True

    def _lock(self, block: int) -> bool:
        if block in self._held:
            return True
        fd = os.open(self._path(block), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return False
        if not self._path(block).exists():  # removed between open and lock by its former owner
            os.close(fd)
            return False
        self._held[block] = fd
        return True

    def _owner(self, block: int) -> str:
        try:
            return str(json.loads(self._path(block).read_text() or "{}").get("label", ""))
        except (FileNotFoundError, ValueError):
            return ""

    def _path(self, block: int) -> Path:
        return self._folder / f"{block}.json"


def _slots(block: int) -> list[int]:
    return list(range(block * BLOCK, (block + 1) * BLOCK))
