"""Ends that were begun: written before anything is destroyed, for the server that finds them half done.

Without it a sandbox that is gone at the start of a server has no cause but that
it is gone, although somebody wished it, or its time was over.

One file of fixed slots, allocated ahead of need, so that it can be written when
the disk is full. It is no part of the state database because a commit more would
make every kill slower by a twentieth; what it must outlive is the death of the
process, and for that the kernel's cache is enough.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import msgspec

from firkin.law.states import EndCause

SLOTS = 1024
_SLOT_BYTES = 512
_EMPTY = bytes(_SLOT_BYTES)
_log = logging.getLogger("firkin.engine")


@dataclass(frozen=True, slots=True, kw_only=True)
class BegunEnd:
    """`removes`: its files go, too."""

    end: EndCause
    actor: str
    detail: str
    removes: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Slot:
    id: str
    begun: BegunEnd


_slots = msgspec.json.Decoder(_Slot)


class BegunEnds:
    """What a server that is killed leaves behind of the ends that it had begun. Nothing here raises for a disk."""

    def __init__(self, fd: int | None = None) -> None:
        """Without a file nothing outlives the process."""
        self._fd = fd
        self._free = list(range(SLOTS))
        self._taken: dict[str, int] = {}
        self._left: dict[str, BegunEnd] = {}

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read what an earlier server left. Blocks; `close` gives the file back."""
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            _log.error("causes of interrupted ends will be lost error=%s", error)
            return cls()
        begun = cls(fd)
        try:
            os.posix_fallocate(fd, 0, SLOTS * _SLOT_BYTES)
            begun._load(os.pread(fd, SLOTS * _SLOT_BYTES, 0))
        except OSError as error:
            _log.error("causes of interrupted ends will be lost error=%s", error)
        return begun

    def begin(self, sandbox_id: str, begun: BegunEnd) -> None:
        """Keep that it is about to end, until it is `settled`."""
        text = msgspec.json.encode(_Slot(id=str(sandbox_id), begun=begun))
        if self._fd is None or len(text) > _SLOT_BYTES:
            return
        if not (self._free or sandbox_id in self._taken):
            self.settled(next(iter(self._taken)))  # the oldest: that long nothing takes to end
        slot = self._taken.pop(sandbox_id, None)
        self._taken[sandbox_id] = slot = self._free.pop() if slot is None else slot
        self._write(slot, text.ljust(_SLOT_BYTES, b"\0"))

    def settled(self, sandbox_id: str) -> None:
        """Its record says what became of it."""
        self._left.pop(sandbox_id, None)
        slot = self._taken.pop(sandbox_id, None)
        if slot is not None:
            self._write(slot, _EMPTY)
            self._free.append(slot)

    def left(self, sandbox_id: str) -> BegunEnd | None:
        """The end that an earlier server began and nobody has settled."""
        return self._left.get(sandbox_id)

    def keep_only(self, sandbox_ids: Collection[str]) -> None:
        for sandbox_id in [one for one in self._left if one not in sandbox_ids]:
            self.settled(sandbox_id)

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _load(self, text: bytes) -> None:
        self._free.clear()
        for number in range(SLOTS):
            body = text[number * _SLOT_BYTES : (number + 1) * _SLOT_BYTES].rstrip(b"\0")
            try:
                slot = _slots.decode(body) if body else None
            except msgspec.DecodeError:  # a power cut's, or a newer Firkin's
                slot = None
            if slot is None:
                self._free.append(number)
            else:
                self._taken[slot.id] = number
                self._left[slot.id] = slot.begun

    def _write(self, slot: int, body: bytes) -> None:
        """On the loop: half a kilobyte into the kernel's cache, a few microseconds, and it must come first."""
        if self._fd is None:
            return
        try:
            os.pwrite(self._fd, body, slot * _SLOT_BYTES)
        except OSError as error:
            _log.error("the cause of an end is lost if the server ends now error=%s", error)
