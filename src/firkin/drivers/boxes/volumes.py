"""The volumes of one driver: an image each below its state folder, mounted when somebody uses it.

A volume that is used from outside keeps a mount of the server's for a moment
longer, so that many small requests do not mount it each time. All mounts are
descriptors: those of a killed server go with it, and a sandbox's with the sandbox.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from firkin.host.volume_disks import mount_volume, remove_unbound_devices
from firkin.host.volume_images import format_volume, sync_folder
from firkin.law.errors import BackendFailure, InvalidSpec, NotFound, ResourceKind
from firkin.law.ids import VolumeId
from firkin.law.volumes import BootVolume

_IDLE_S = 2.0
_THREADS = 4
_USE = "use a volume"


class _Held:
    """A mount of the server's own and how many use it now. `doomed`: nobody may find it any more."""

    __slots__ = ("closing", "doomed", "root", "users")

    def __init__(self, root: int) -> None:
        self.root = root
        self.users = 0
        self.doomed = False
        self.closing: asyncio.TimerHandle | None = None


class VolumeDisks:
    """Implements the law's `VolumeKeeper`, and mounts volumes for sandboxes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held: dict[VolumeId, _Held] = {}
        self._binding: dict[VolumeId, threading.Lock] = {}
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="firkin-volume")

    async def start(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        await asyncio.to_thread(remove_unbound_devices)

    async def aclose(self) -> None:
        """Let go of what the server itself holds. Sandboxes keep what they have mounted."""
        for volume_id in list(self._held):
            self._let_go(volume_id)
        await asyncio.to_thread(self._threads.shutdown)
        await asyncio.to_thread(remove_unbound_devices)

    async def make(self, volume_id: VolumeId, size_bytes: int) -> None:
        await format_volume(self._image(volume_id), size_bytes)

    @asynccontextmanager
    async def opened(self, volume_id: VolumeId) -> AsyncIterator[int]:
        held = await self._hold(volume_id)
        try:
            yield held.root
        finally:
            self._unhold(volume_id, held)

    async def remove(self, volume_id: VolumeId) -> None:
        await asyncio.to_thread(_unlink, self._image(volume_id))
        self._let_go(volume_id)
        self._binding.pop(volume_id, None)

    async def kept(self) -> Collection[VolumeId]:
        return await asyncio.to_thread(self._kept)

    def _kept(self) -> set[VolumeId]:
        for path in self._folder.glob("*.new"):
            _unlink(path)
        kept = set()
        for path in self._folder.glob("*.img"):
            with suppress(InvalidSpec):  # somebody else's file
                kept.add(VolumeId(path.stem))
        return kept

    @asynccontextmanager
    async def mounted(self, volumes: Sequence[BootVolume]) -> AsyncIterator[list[int]]:
        """A detached mount of each, in that order, for the length of a block. Whoever was sent a copy keeps it."""
        mounts: list[int] = []
        try:
            for volume in volumes:
                mounts.append(await self._mount_known(volume.volume_id))
            yield mounts
        finally:
            for mount in mounts:
                self._close(mount)

    async def _mount_known(self, volume_id: VolumeId) -> int:
        """A record without an image is not the fault of whoever wants a sandbox."""
        try:
            return await self._mount(volume_id)
        except NotFound as error:
            raise BackendFailure(_USE, "volumes", f"the image of volume {volume_id} is gone") from error

    async def _hold(self, volume_id: VolumeId) -> _Held:
        held = self._held.get(volume_id)
        if held is None:
            root = await self._mount(volume_id)
            held = self._held.setdefault(volume_id, _Held(root))
            if held.root != root:  # another request was faster
                self._close(root)
        held.users += 1
        if held.closing is not None:
            held.closing.cancel()
            held.closing = None
        return held

    def _unhold(self, volume_id: VolumeId, held: _Held) -> None:
        held.users -= 1
        if held.users:
            return
        if held.doomed:
            self._close(held.root)
        else:
            held.closing = asyncio.get_running_loop().call_later(_IDLE_S, self._let_go, volume_id)

    def _let_go(self, volume_id: VolumeId) -> None:
        """Who uses it at this moment goes on with it; it is closed after the last."""
        held = self._held.pop(volume_id, None)
        if held is None:
            return
        held.doomed = True
        if held.closing is not None:
            held.closing.cancel()
        if not held.users:
            self._close(held.root)

    def _close(self, mount: int) -> None:
        """The last descriptor of a mount unmounts, which may wait for the disk: in a thread, while there are any."""
        try:
            self._threads.submit(os.close, mount)
        except RuntimeError:
            os.close(mount)

    async def _mount(self, volume_id: VolumeId) -> int:
        lock = self._binding.setdefault(volume_id, threading.Lock())
        mounting = self._threads.submit(_mount_now, str(self._image(volume_id)), lock)
        try:
            return await asyncio.shield(asyncio.wrap_future(mounting))
        except asyncio.CancelledError:
            mounting.add_done_callback(_close_result)
            raise
        except FileNotFoundError:
            raise NotFound(_USE, ResourceKind.VOLUME, volume_id) from None
        except OSError as error:
            why = error.strerror or type(error).__name__  # not its text, which names the image's place on the host
            raise BackendFailure(_USE, "volumes", f"volume {volume_id} cannot be mounted: {why}") from error

    def _image(self, volume_id: VolumeId) -> Path:
        return self._folder / f"{volume_id}.img"


def _mount_now(image: str, lock: threading.Lock) -> int:
    """One at a time for an image: two could bind two devices."""
    with lock:
        return mount_volume(image)


def _close_result(mounting: Future[int]) -> None:
    """Nobody waits for this mount any more."""
    if not mounting.cancelled() and mounting.exception() is None:
        os.close(mounting.result())


def _unlink(path: Path) -> None:
    path.unlink(missing_ok=True)
    sync_folder(path.parent)
