"""Volumes of one node: made, listed, measured, deleted."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Sequence

from firkin.engine.node import Node
from firkin.engine.volume_files import LocalVolumeFiles
from firkin.law.errors import CapacityRejected, InvalidReason, InvalidSpec
from firkin.law.ids import VolumeId
from firkin.law.resources import MIB
from firkin.law.volumes import VolumeInfo, VolumeSpec, VolumeUsage
from firkin.lifetimes import finish

LEAST_BYTES = 16 * MIB
MOST_BYTES = 16 * 1024 * 1024 * MIB  # 16 TiB, the most that a file on ext4 can have
UNDO_WITHIN_S = 30.0
_CREATE, _DELETE = "create a volume", "delete a volume"


class LocalVolumes:
    """The `VolumeControl` of the engine, over a driver that keeps volumes."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._registry = node.volumes

    @property
    def files(self) -> LocalVolumeFiles:
        return LocalVolumeFiles(self._registry, self._node.volume_threads)

    async def create(self, spec: VolumeSpec) -> VolumeInfo:
        """Its room is not set aside: it takes from the host's disk what is written to it."""
        size = self._node.policies.default_volume_bytes if spec.size_bytes is None else spec.size_bytes
        if not LEAST_BYTES <= size <= MOST_BYTES:
            detail = f"the size is {size} bytes; it must be from {LEAST_BYTES} to {MOST_BYTES}"
            raise InvalidSpec(_CREATE, InvalidReason.INVALID_VOLUME, detail)
        has = self._node.gauge.totals().disk_bytes
        if spec.size_bytes is not None and size > has:
            detail = f"the size is {size} bytes; the host's disk has {has} in all, ask for less"
            raise InvalidSpec(_CREATE, InvalidReason.INVALID_VOLUME, detail)
        free, floor = self._node.gauge.read().disk_bytes, self._node.policies.capacity.disk_floor_bytes
        if free < floor:
            short = "free disk on the host"
            raise CapacityRejected(_CREATE, short, requested=0, available=free, unit="bytes", limit=floor)
        return await self._node.acts.run(self._create(spec, size), name=f"create volume {spec.name}")

    async def _create(self, spec: VolumeSpec, size: int) -> VolumeInfo:
        info = VolumeInfo(
            id=VolumeId(f"v{secrets.token_hex(10)}"),
            name=spec.name,
            owner=spec.owner,
            size_bytes=size,
            created_at=self._node.clock.now(),
        )
        with self._registry.naming(_CREATE, spec.owner, spec.name):
            await self._registry.note(info)
            try:
                await self._registry.keeper.make(info.id, size)
            except BaseException:
                await finish(self._registry.forget(info.id), within_s=UNDO_WITHIN_S)
                raise
            self._registry.add(info)
        return info

    async def get(self, volume_id: VolumeId) -> VolumeInfo:
        return self._registry.get("inspect a volume", volume_id)

    async def list(self, owner: str | None = None) -> Sequence[VolumeInfo]:
        return [info for info in self._registry.all() if owner in (None, info.owner)]

    async def usage(self, volume_id: VolumeId) -> VolumeUsage:
        self._registry.get("measure a volume", volume_id)
        async with self._registry.keeper.opened(volume_id) as root:
            found = await asyncio.to_thread(os.fstatvfs, root)
        total = found.f_blocks * found.f_frsize
        return VolumeUsage(total_bytes=total, used_bytes=total - found.f_bfree * found.f_frsize)

    async def delete(self, volume_id: VolumeId) -> None:
        self._registry.get(_DELETE, volume_id)
        await self._node.acts.run(self._delete(volume_id), name=f"delete volume {volume_id}")

    async def _delete(self, volume_id: VolumeId) -> None:
        """The record goes last: what is interrupted here is finished at the next start."""
        info = self._registry.take_out(_DELETE, volume_id)
        try:
            await self._registry.keeper.remove(volume_id)
        except BaseException:
            self._registry.add(info)
            raise
        await self._registry.forget(volume_id)
