"""Writing a machine down: before, while and after it stands still.

The machine stands still only for what can change: its device state (12 KB), the
pages that are its own, and its disk. What it has in common with the store that
it was woken from is copied before, and digests are taken after.
"""

from __future__ import annotations

import asyncio
import logging
import os
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from firkin.drivers.qemu.memory import woken_with, write_changes
from firkin.drivers.qemu.qmp import Monitor
from firkin.drivers.qemu.stores import DISK, MEMORY, STATE, Fit, finish_store
from firkin.drivers.qemu.warm.process_images import Picture, ProcessImage
from firkin.host.disks import copy_image, copy_sparse
from firkin.law.errors import BackendFailure, CapacityRejected
from firkin.lifetimes import children, finish

T = TypeVar("T")
STATE_SET = 900  # of descriptors; QEMU closes what is removed from one only while its machine runs
_log = logging.getLogger("firkin.qemu")
_FILE_HEADER = 8  # magic and version
_DESCRIPTION = 6  # QEMU, migration/savevm.h
_GIVE_UP_WITHIN_S = 60.0
_ROOM = 1 << 20  # many times what device state takes


class Capture:
    """One writing down of the machine of process `pid` into the empty folder `into`."""

    def __init__(self, pid: int, fit: Fit, disk: Path, into: Path, picture: Picture | None = None) -> None:
        """With a `picture` there may be an image of the process, too."""
        self._pid = pid
        self._picture = picture
        self._image: ProcessImage | None = None
        self._fit = fit
        self._disk = disk
        self._into = into
        self._stop = threading.Event()

    async def prepare(self, room_bytes: int) -> None:
        """What can be done while it runs."""
        await self._in_thread(lambda: self._begin(room_bytes))
        if self._picture is not None:
            await self._in_thread(self._prepare_picture)

    async def write(self, monitor: Monitor) -> None:
        """The machine stands still. `OSError`, `BackendFailure`."""
        raw = os.open(self._into / f".{STATE}", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            writing = os.open(self._into / f".{STATE}", os.O_WRONLY | os.O_CLOEXEC)
            try:
                await monitor.ask("add-fd", fd=writing, fdset_id=STATE_SET)
            finally:
                os.close(writing)
            await self._write_state(monitor, raw)
            async with children() as beside:
                work = [lambda: self._copy(raw)]
                if self._picture is not None:
                    work.append(lambda: self._take_picture(raw))
                for done in [beside.start(self._in_thread(part), name="write a machine down") for part in work]:
                    await done
        finally:
            os.close(raw)
            (self._into / f".{STATE}").unlink(missing_ok=True)

    async def _write_state(self, monitor: Monitor, raw: int) -> None:
        try:
            await monitor.ask("xen-save-devices-state", filename=f"/dev/fdset/{STATE_SET}", live=False)
        except BackendFailure:
            await self._in_thread(lambda: _require_room(raw))
            raise

    async def finish(self) -> dict[str, str]:
        """It may run again. The digests of what was written, by file."""
        if self._picture is not None:
            await self._in_thread(self._finish_picture)
        return await self._in_thread(lambda: finish_store(self._into, self._fit, os.stat(self._disk).st_size))

    def image(self) -> ProcessImage | None:
        """Of the process at that instant, if there is one; once, and the caller's to close."""
        image, self._image = self._image, None
        return image

    def drop(self) -> None:
        """What was not asked for is not wanted. Idempotent."""
        if self._picture is not None:
            self._picture.drop()
        if (image := self.image()) is not None:
            image.close()

    def _prepare_picture(self) -> None:
        assert self._picture is not None
        with _no_picture_then():
            self._picture.prepare()

    def _take_picture(self, raw: int) -> None:
        assert self._picture is not None
        with _no_picture_then():
            self._picture.take(raw)

    def _finish_picture(self) -> None:
        assert self._picture is not None
        with _no_picture_then():
            self._image = self._picture.image()
        if self._stop.is_set() and (image := self.image()) is not None:  # nobody waited for it
            image.close()

    def _begin(self, room_bytes: int) -> None:
        size = self._fit.shape.memory_mib << 20
        needed = self._disk.stat().st_blocks * 512 + self._used()
        if needed > room_bytes:
            raise CapacityRejected(
                "capture a snapshot", "free disk on the host", requested=needed, available=room_bytes, unit="bytes"
            )
        memory = os.open(self._into / MEMORY, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            base = woken_with(self._pid, size)
            try:
                copy_sparse(base, memory, size, stopped=self._stop.is_set)
            finally:
                os.close(base)
        finally:
            os.close(memory)

    def _used(self) -> int:
        """No more than that can be the machine's own: what its process holds."""
        with open(f"/proc/{self._pid}/status") as file:
            for line in file:
                if line.startswith("VmRSS:"):
                    return int(line.split()[1]) * 1024
        return 0

    def _copy(self, raw: int) -> None:
        size = self._fit.shape.memory_mib << 20
        (self._into / STATE).write_bytes(_whole_stream(os.pread(raw, 64 << 20, 0)))
        memory = os.open(self._into / MEMORY, os.O_RDWR | os.O_CLOEXEC)
        try:
            write_changes(self._pid, memory, size)
        finally:
            os.close(memory)
        source = os.open(self._disk, os.O_RDONLY | os.O_CLOEXEC)
        try:
            target = os.open(self._into / DISK, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                copy_image(source, target, os.fstat(source).st_size, stopped=self._stop.is_set)
            finally:
                os.close(target)
        finally:
            os.close(source)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        running = asyncio.get_running_loop().run_in_executor(None, work)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            self._stop.set()
            with suppress(Exception):
                await finish(_over(running), within_s=_GIVE_UP_WITHIN_S)
            raise


@contextmanager
def _no_picture_then() -> Iterator[None]:
    """It makes wakings quicker, and is needed for nothing."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 — what a process can be like is its own choice; none of it is our caller's
        _log.info("no image of a machine's process error=%s", error)


async def _over(running: asyncio.Future[T]) -> None:
    await asyncio.wait({running})


def _require_room(file: int) -> None:
    """`OSError` when nothing more can be written to `file`: QEMU itself says of that only that it could not."""
    os.pwrite(file, b"\1" * _ROOM, os.fstat(file).st_size)
    os.fsync(file)


def _whole_stream(devices: bytes) -> bytes:
    """Device state as QEMU takes a migration: with an empty description after it.

    QEMU writes device state alone only in the form that it has for Xen, and cannot read that form itself. What else
    would stand before it, the machine's name and size of pages, a machine is told not to expect (`machines`).
    """
    if len(devices) < _FILE_HEADER or devices[:4] != b"QEVM":
        raise BackendFailure("capture a snapshot", "qemu", "its device state is none")
    return devices + struct.pack(">BI", _DESCRIPTION, 2) + b"{}"
