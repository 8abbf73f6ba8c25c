"""Copying a sandbox's disk as it is at one instant.

What programs inside have written lies in the ext4's own memory first. syncfs
through the sandbox's root writes it out to the image file: once while the
sandbox still runs, which takes the time, and once while it is frozen, which
takes what is left. Then the image is copied. Before all that, blocks of deleted
files are punched out of the image: they would cost time, and what was deleted has
no business in a copy that others may get.

The ids on the disk are those that the programs inside see, so any slot can use
the copy. Files that were deleted while open keep their blocks in it.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from firkin.drivers.ground.process_table import start_time
from firkin.host.disks import copy_image
from firkin.host.superblocks import mark_clean
from firkin.host.syncing import sync_filesystem
from firkin.host.trimming import trim
from firkin.law.driver import InstanceRef
from firkin.lifetimes import finish

IMAGE = "disk.img"
_AT_ONCE = 4
_GIVEN_UP_WITHIN_S = 10.0


class DiskThreads:
    """Threads for long copies, so that these keep nobody else's work waiting. As many turns as threads."""

    def __init__(self) -> None:
        self._turns = asyncio.Semaphore(_AT_ONCE)
        self._threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="firkin-disk")

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """To be had before a sandbox is frozen for a copy: it must not stand still in a queue."""
        async with self._turns:
            yield

    async def run(self, work: Callable[[], None], stop: threading.Event) -> None:
        """Run `work` in a thread. Cancelling sets `stop` and waits until the thread has seen it."""
        running = asyncio.get_running_loop().run_in_executor(self._threads, work)
        try:
            await asyncio.shield(running)
        except asyncio.CancelledError:
            stop.set()
            with suppress(OSError, TimeoutError):
                await finish(_ended(running), within_s=_GIVEN_UP_WITHIN_S)
            raise

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


_BLOCK = 512  # of st_blocks, whatever the file system


class DiskCapture:
    """One copy of the disk of the instance `ref` into the directory `into`. Its methods block."""

    def __init__(self, ref: InstanceRef, into: Path, *, loop: int, root_of: Callable[[int], int]) -> None:
        """`root_of` opens what is on the disk, given the sandbox's process."""
        self.stop = threading.Event()
        self._pid = int(ref.facts["pid"])
        self._start_time = int(ref.facts["start_time"])
        self._disk = str(ref.facts["disk"])
        self._into = into
        self._loop = loop
        self._root_of = root_of

    def prepare(self) -> None:
        """What can be done while it runs."""
        with suppress(OSError):  # a kernel or file system that cannot punch holes copies more
            trim(f"/dev/loop{self._loop}")
        self.sync()

    def give_back(self) -> int:
        """Return to the host what the disk no longer uses: how many bytes that really were."""
        before = os.stat(self._disk).st_blocks
        self.prepare()
        return max(0, before - os.stat(self._disk).st_blocks) * _BLOCK

    def sync(self) -> None:
        root = self._root_of(self._pid)
        try:
            if start_time(self._pid) != self._start_time:
                raise ProcessLookupError("the sandbox has ended")
            sync_filesystem(root)
        finally:
            os.close(root)

    def copy(self) -> None:
        self.sync()
        source = os.open(self._disk, os.O_RDONLY | os.O_CLOEXEC)
        try:
            target = os.open(self._into / IMAGE, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                copy_image(source, target, os.fstat(source).st_size, stopped=self.stop.is_set)
                mark_clean(target)
            finally:
                os.close(target)
        finally:
            os.close(source)


async def _ended(running: asyncio.Future[None]) -> None:
    await asyncio.wait({running})
    if not running.cancelled():
        running.exception()  # looked at: nobody else will
