"""Memory drivers that play the tiers of one server, and outlive the servers on them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from firkin.drivers.memory import MemoryDriver, MemoryRootPreparer
from firkin.drivers.memory.driver import MemoryInstance
from firkin.drivers.tiers.driver import TiersDriver
from firkin.drivers.tiers.tier import Make, TierPlan
from firkin.engine.backend import LocalBackend
from firkin.law.backend import Preflight
from firkin.law.driver import BootPlan
from firkin.law.errors import BackendFailure
from firkin.law.ids import TemplateId
from firkin.law.isolation import Isolation
from firkin.law.policies import Capacity, Policies
from firkin.law.templates import TemplateSpec
from firkin.law.volumes import VolumeKeeper
from tests.calm import calm

TIERS = {"namespaces": Isolation.NAMESPACES, "gvisor": Isolation.GVISOR, "qemu": Isolation.MICROVM}
TEMPLATE = TemplateId("plain")
FREE = Policies(capacity=Capacity(memory_floor_bytes=0, disk_floor_bytes=0))


class Played(MemoryDriver):
    """`lacks` is what the machine has not got for it. Everything asked is counted."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.lacks: tuple[str, ...] = ()
        self.looks = self.starts = self.boots = self.verified = 0
        self.breaks = ""
        self.keeper: VolumeKeeper | None = None

    @property
    def volumes(self) -> VolumeKeeper | None:  # type: ignore[override]  # the driver in memory keeps none
        return self.keeper

    async def preflight(self) -> Preflight:
        self.looks += 1
        return Preflight(ready=not self.lacks, reasons=self.lacks)

    async def start(self) -> None:
        self.starts += 1
        if self.breaks:
            raise BackendFailure("start", self.name, self.breaks)

    async def boot(self, plan: BootPlan) -> MemoryInstance:
        self.boots += 1
        return await super().boot(plan)

    async def verify(self, captured: Path) -> None:
        self.verified += 1


class Sharing(Played):
    """Mounts what another keeps."""

    def share_volumes(self, keeper: VolumeKeeper) -> None:
        self.keeper = keeper


class World:
    """One machine and one state folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.drivers = {name: Played(name) for name in TIERS}
        self.loaded: list[str] = []
        self.living: set[str] = set()

    def driver(self, default: str = "namespaces") -> TiersDriver:
        """As a server that has just begun would make it: the drivers of the earlier one are its own again."""
        self.loaded.clear()
        plans = {name: self._plan(name) for name in TIERS}
        return TiersDriver(plans.pop(default), self.drivers[default], list(plans.values()))

    def _plan(self, name: str) -> TierPlan:
        def load() -> Make:
            self.loaded.append(name)
            return lambda: self.drivers[name]

        folder = self.folder / "drivers" / name
        return TierPlan(isolation=TIERS[name], driver=name, folder=folder, load=load, lives=lambda: name in self.living)

    @asynccontextmanager
    async def server(self, default: str = "namespaces", *, kill_all: bool = False) -> AsyncIterator[LocalBackend]:
        """A server on it, with a template. What lives is left to the next one unless `kill_all`."""
        backend = LocalBackend(
            driver=self.driver(default),
            preparer=MemoryRootPreparer(),
            state_dir=self.folder,
            server_secret=b"x" * 32,
            stalls=calm(),
        )
        await backend.start(FREE)
        try:
            await backend.templates.prepare(TemplateSpec.host(id=TEMPLATE))
            yield backend
        finally:
            await backend.aclose(kill_all=kill_all)

    async def where(self, sandbox_id: str) -> list[str]:
        """On which drivers it lives."""
        return [name for name, driver in self.drivers.items() if sandbox_id in await driver.live()]

    async def held(self) -> list[str]:
        """Every sandbox of which any driver has anything."""
        return [f"{name}: {held}" for name, driver in self.drivers.items() for held in await driver.held()]
