"""Volumes as plain folders, for tests that need no kernel: their files are real, nothing mounts them, no size holds."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from pathlib import Path

from firkin.drivers.memory import MemoryDriver
from firkin.drivers.memory.driver import MemoryInstance
from firkin.law.driver import BootPlan
from firkin.law.errors import NotFound, ResourceKind
from firkin.law.ids import SandboxId, VolumeId
from firkin.law.volumes import BootVolume


class FolderVolumes:
    """Implements the law's `VolumeKeeper`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.failure: Exception | None = None
        folder.mkdir(parents=True, exist_ok=True)

    async def make(self, volume_id: VolumeId, size_bytes: int) -> None:
        if self.failure is not None:
            raise self.failure
        (self.folder / volume_id).mkdir()

    @asynccontextmanager
    async def opened(self, volume_id: VolumeId) -> AsyncIterator[int]:
        try:
            fd = os.open(self.folder / volume_id, os.O_PATH | os.O_DIRECTORY)
        except FileNotFoundError:
            raise NotFound("use a volume", ResourceKind.VOLUME, volume_id) from None
        try:
            yield fd
        finally:
            os.close(fd)

    async def remove(self, volume_id: VolumeId) -> None:
        shutil.rmtree(self.folder / volume_id, ignore_errors=True)

    async def kept(self) -> Collection[VolumeId]:
        return {VolumeId(path.name) for path in self.folder.iterdir()}


class DriverWithVolumes(MemoryDriver):
    """Says which volumes it was asked to mount, in `mounted`."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.keeper = FolderVolumes(folder)
        self.mounted: dict[SandboxId, tuple[BootVolume, ...]] = {}

    @property
    def volumes(self) -> FolderVolumes:  # type: ignore[override]  # the driver in memory keeps none
        return self.keeper

    async def boot(self, plan: BootPlan) -> MemoryInstance:
        self.mounted[plan.sandbox_id] = plan.volumes
        return await super().boot(plan)
