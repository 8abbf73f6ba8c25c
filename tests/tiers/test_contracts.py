"""Several tiers behind one driver keep the promises of a driver and of a backend, whichever is the default."""

from __future__ import annotations

from pathlib import Path

import pytest

from firkin.drivers.memory import MemoryRootPreparer
from firkin.engine.backend import LocalBackend
from firkin.law.backend import SandboxBackend
from firkin.law.driver import BootPlan, Driver, RootFilesystem
from firkin.law.ids import SandboxId
from firkin.law.policies import Policies
from firkin.law.processes import Command
from firkin.law.resources import SandboxResources
from firkin.testing import BackendContract, DriverContract
from firkin.testing.backend_suite import MakeBackend
from tests.calm import calm

from .worlds import World


class TestTiersDriver(DriverContract):
    """The default tier's, behind the composite."""

    tier = ""

    @pytest.fixture(autouse=True)
    def world(self, tmp_path: Path) -> None:
        self._world = World(tmp_path / "world")

    async def make_driver(self) -> Driver:
        return self._world.driver()

    async def reopen(self, driver: Driver) -> Driver:
        await driver.aclose()
        later = self._world.driver()
        await later.start()
        return later

    def boot_plan(self, sandbox_id: SandboxId) -> BootPlan:
        root = RootFilesystem(base="/nonexistent")
        return BootPlan(sandbox_id=sandbox_id, root=root, resources=SandboxResources(), isolation=self.tier)


@pytest.mark.slow  # as the memory driver alone, a way further round
class TestTiersBackend(BackendContract):
    @pytest.fixture
    def make_backend(self, tmp_path: Path) -> MakeBackend:
        self._world = World(tmp_path / "state")

        async def make(policies: Policies) -> LocalBackend:
            backend = LocalBackend(
                driver=self._world.driver(), preparer=MemoryRootPreparer(), state_dir=self._world.folder, stalls=calm()
            )
            await backend.start(policies)
            return backend

        return make

    def listener(self, port: int) -> Command:
        return Command.argv("echoserver", str(port))

    async def leftovers(self, backend: SandboxBackend) -> list[str]:
        return [held.partition(": ")[2] for held in await self._world.held()]
