"""The images of processes that a driver keeps, by the store whose instant they are of. They end with the server."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from firkin.drivers.qemu.stores import MEMORY, STATE, Store
from firkin.drivers.qemu.warm.held_threads import can_hold
from firkin.drivers.qemu.warm.process_images import ProcessImage
from firkin.host.file_marks import FileMark
from firkin.host.meminfo import meminfo
from firkin.law.resources import GIB

_UNUSED_S = 900.0
_LEFT_FREE = GIB  # of the host's memory
_MOST_FAILED = 3  # one after the other
_NONE_FOR_S = 300.0


@dataclass(frozen=True, slots=True)
class _Key:
    """Of one store. What its machine had in its memory is the guest's choice, and so are digests of that; which file it
    was written to is not."""

    memory: FileMark
    digests: tuple[str, str]

    @classmethod
    def of(cls, folder: Path, digests: Mapping[str, str]) -> _Key:
        mark = FileMark.of(os.stat(folder / MEMORY, follow_symlinks=False))
        return cls(mark, (digests.get(MEMORY, ""), digests.get(STATE, "")))


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
        self._none_until = 0.0

    def wants(self, accelerator: str) -> bool:
        """Whether it is worth while to take one: where code is translated, and the host has memory to spare."""
        if not self._most or accelerator != "tcg" or time.monotonic() < self._none_until:
            return False
        with suppress(OSError):
            return meminfo("MemAvailable") >= 2 * _LEFT_FREE
        return False

    def has(self, store: Store) -> bool:
        with suppress(OSError):
            return _Key.of(store.folder, store.digests) in self._kept
        return False

    def add(self, folder: Path, digests: Mapping[str, str], image: ProcessImage) -> None:
        """`image` is kept here from now on: of the instant of the store in `folder`, which has these digests."""
        try:
            key = _Key.of(folder, digests)
        except OSError:
            image.close()
        else:
            self._put(key, _Kept(image, None))

    def stand_in(self, store: Store, instead: Store) -> None:
        """Whoever wants to go on from `store` goes on from `instead`, if there is an image of that.

        Its folder is removed with the image.
        """
        kept = None
        with suppress(OSError):
            key = _Key.of(store.folder, store.digests)
            kept = self._kept.pop(_Key.of(instead.folder, instead.digests), None)
        if kept is None:
            shutil.rmtree(instead.folder, ignore_errors=True)
        else:
            kept.stand_in = instead
            self._put(key, kept)

    def lend(self, store: Store) -> WarmStore | None:
        """What goes on where `store` stopped, or not long after."""
        with suppress(OSError):  # nobody needs one
            key = _Key.of(store.folder, store.digests)
            kept = self._kept.get(key)
            if kept is None:
                return None
            if not kept.image.still_fits():
                self._end(key)
                return None
            kept.used, kept.used_at = True, time.monotonic()
            return WarmStore(store=kept.stand_in or store, image=_duplicate(kept.image))
        return None

    def worked(self) -> None:
        """One was taken, or a process began from one."""
        self._failed = 0

    def failed(self) -> None:
        """None could be taken, or nothing begins from one. Where that is always so, none is taken for a while."""
        self._failed += 1
        if self._failed >= _MOST_FAILED:
            self._failed, self._none_until = 0, time.monotonic() + _NONE_FOR_S

    def drop(self, store: Store) -> None:
        """Its image is of no use. Idempotent."""
        with suppress(OSError):
            self._end(_Key.of(store.folder, store.digests))

    def drop_idle(self, *, all_of_them: bool = False) -> None:
        now, short = time.monotonic(), False
        with suppress(OSError):
            short = meminfo("MemAvailable") < _LEFT_FREE
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
