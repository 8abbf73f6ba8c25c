"""The driver without an engine above it, for tests of what only it can do."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from firkin.drivers.boxes.instance import BoxInstance
from firkin.drivers.namespaces.driver import NamespacesDriver
from firkin.host.roots import HostRootPreparer
from firkin.law.driver import BootPlan, RootFilesystem
from firkin.law.ids import SandboxId
from firkin.law.resources import MIB, SandboxResources
from firkin.law.templates import TemplateSpec

SIZE = SandboxResources(vcpus=1, memory_bytes=256 * MIB, disk_bytes=256 * MIB)


class Alone:
    """A started driver over `state`, and plans for it."""

    def __init__(self, driver: NamespacesDriver, root: RootFilesystem, state: Path) -> None:
        self.driver = driver
        self.root = root
        self.state = state

    def plan(self, name: str) -> BootPlan:
        return BootPlan(sandbox_id=SandboxId(name), root=self.root, resources=SIZE, hostname=name)

    async def boot(self, name: str) -> BoxInstance:
        return await self.driver.boot(self.plan(name))

    async def fork(self, name: str, captured: Path) -> BoxInstance:
        return await self.driver.boot(replace(self.plan(name), captured=str(captured)))

    def disk(self, name: str) -> Path:
        return self.state / "disks" / f"{name}.img"

    def folder(self, name: str) -> Path:
        made = self.state / name
        made.mkdir()
        return made


@asynccontextmanager
async def driver_alone(state: Path) -> AsyncIterator[Alone]:
    """Nothing that it booted outlives the block."""
    into = state / "template"
    into.mkdir()
    prepared = await HostRootPreparer().prepare(TemplateSpec.host(), into, lambda _: None)
    driver = NamespacesDriver.from_settings(state, {"ready_slots": "2"})
    await driver.start()
    await driver.sweep([])
    try:
        yield Alone(driver, prepared.root, state)
    finally:
        await driver.sweep([])
        left = list(await driver.live())
        await driver.aclose()
    assert left == []
