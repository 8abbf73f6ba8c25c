"""Removing disks so that nobody waits for it.

To free a disk's blocks takes the host's file system milliseconds, or tens of
them while it still writes some out. A caller's delete waits for the disk to lose
its name only; its blocks are freed behind, by one thread. What a killed server
did not get to is found by its new name at the next start.
"""

from __future__ import annotations

import asyncio
import itertools
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

_GONE = ".gone"


class Discards:
    """Of the disks in one folder. Use from one event loop; `close` blocks until all blocks are free."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = itertools.count()
        self._freeing = ThreadPoolExecutor(1, thread_name_prefix="firkin-discard")

    def sweep(self) -> None:
        """Free what an earlier server left, and wait for it."""
        for path in self._folder.glob(f"*{_GONE}"):
            path.unlink(missing_ok=True)

    async def discard(self, disk: Path) -> None:
        """On return nothing is at that path, and the file cannot be reached by any name that anybody knows.
        Idempotent. Raises `OSError`."""
        aside = self._folder / f"{next(self._numbers)}{_GONE}"
        try:
            await asyncio.to_thread(disk.rename, aside)
        except FileNotFoundError:
            return
        self._freeing.submit(_free, aside)

    def close(self) -> None:
        self._freeing.shutdown()


def _free(path: Path) -> None:
    with suppress(OSError):  # the next start tries again
        path.unlink(missing_ok=True)
