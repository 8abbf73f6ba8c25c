"""The images of processes that a driver keeps, by the store whose instant they are of. They end with the server."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass, field, replace

from firkin.drivers.qemu.stores import MEMORY, STATE, Store
from firkin.drivers.qemu.warm.held_threads import can_hold
from firkin.drivers.qemu.warm.process_images import ProcessImage
from firkin.host.meminfo import meminfo
from firkin.law.resources import GIB

_UNUSED_S = 900.0
_MOST_FAILED = 3  # one after the other
_LEFT_FREE = GIB  # of the host's memory
_Key = tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmStore:
    """A store, and the process that stood there. `image` is the caller's to close."""

    store: Store
    image: ProcessImage


@dataclass(slots=True)
class _Kept:
    image: ProcessImage
    stand_in: Store | None  # what has the memory and the disk of its instant, where that is another than was asked for
    used: bool = False
    used_at: float = field(default_factory=time.monotonic)


class WarmImages:
    """Use from one event loop."""

    def __init__(self, most: int) -> None:
        """`most` are kept at once; 0: none."""
        self._most = most if can_hold() else 0
        self._kept: dict[_Key, _Kept] = {}
        self._failed = 0

    def wants(self, accelerator: str) -> bool:
        """Whether it is worth while to take one: where code is translated, and the host has memory to spare."""
        if not self._most or self._failed >= _MOST_FAILED or accelerator != "tcg":
            return False
        return meminfo("MemAvailable") >= 2 * _LEFT_FREE

    def has(self, store: Store) -> bool:
        return _key(store.digests) in self._kept

    def add(self, digests: dict[str, str], image: ProcessImage) -> None:
        """`image` is kept here from now on: of the instant of the store that has these digests."""
        self._put(_key(digests), _Kept(image, None))

    def stand_in(self, store: Store, instead: Store) -> None:
        """Whoever wants to go on from `store` goes on from `instead`, if there is an image of that.

        Its folder is removed with the image.
        """
        kept = self._kept.pop(_key(instead.digests), None)
        if kept is None:
            shutil.rmtree(instead.folder, ignore_errors=True)
        else:
            kept.stand_in = instead
            self._put(_key(store.digests), kept)

    def lend(self, store: Store) -> WarmStore | None:
        """What goes on where `store` stopped, or not long after."""
        kept = self._kept.get(_key(store.digests))
        if kept is None:
            return None
        if not kept.image.still_fits():
            self.drop(store)
            return None
        kept.used, kept.used_at = True, time.monotonic()
        return WarmStore(store=kept.stand_in or store, image=_duplicate(kept.image))

    def worked(self) -> None:
        """A process began from one."""
        self._failed = 0

    def failed(self) -> None:
        """No process could begin from one. On a host where it never works none are taken any more."""
        self._failed += 1

    def drop(self, store: Store) -> None:
        """Its image is of no use. Idempotent."""
        self._end(_key(store.digests))

    def drop_idle(self, *, all_of_them: bool = False) -> None:
        now, short = time.monotonic(), meminfo("MemAvailable") < _LEFT_FREE
        for key, kept in list(self._kept.items()):
            if all_of_them or short or now - kept.used_at > _UNUSED_S:
                self._end(key)

    def _put(self, key: _Key, kept: _Kept) -> None:
        self._end(key)
        self._kept[key] = kept
        while len(self._kept) > self._most:  # first those that nobody has used yet: most snapshots are never restored
            others = [other for other in self._kept if other != key]
            self._end(min(others, key=lambda other: (self._kept[other].used, self._kept[other].used_at)))

    def _end(self, key: _Key) -> None:
        kept = self._kept.pop(key, None)
        if kept is not None:
            kept.image.close()
            if kept.stand_in is not None:
                shutil.rmtree(kept.stand_in.folder, ignore_errors=True)


def _duplicate(image: ProcessImage) -> ProcessImage:
    made: list[int] = []
    try:
        for fd in (*image.contents, image.program):
            made.append(os.dup(fd))
    except OSError:
        for fd in made:
            os.close(fd)
        raise
    return replace(image, contents=tuple(made[:-1]), program=made[-1])


def _key(digests: dict[str, str]) -> _Key:
    """Of memory and devices: whatever has both is of the same instant."""
    return digests.get(MEMORY, ""), digests.get(STATE, "")
