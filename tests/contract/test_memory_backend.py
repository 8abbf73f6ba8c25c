"""The engine over the memory driver keeps every promise of a backend."""

from __future__ import annotations

from pathlib import Path

import pytest

from firkin.drivers.memory import MemoryDriver, MemoryRootPreparer
from firkin.engine.backend import LocalBackend
from firkin.law.backend import SandboxBackend
from firkin.law.policies import Policies
from firkin.law.processes import Command
from firkin.testing import BackendContract
from firkin.testing.backend_suite import MakeBackend
from tests.calm import calm


class TestMemoryBackend(BackendContract):
    @pytest.fixture
    def driver(self) -> MemoryDriver:
        return MemoryDriver()

    @pytest.fixture
    def make_backend(self, driver: MemoryDriver, tmp_path: Path) -> MakeBackend:
        async def make(policies: Policies) -> LocalBackend:
            backend = LocalBackend(
                driver=driver, preparer=MemoryRootPreparer(), state_dir=tmp_path / "state", stalls=calm()
            )
            await backend.start(policies)
            return backend

        self._driver = driver
        return make

    def listener(self, port: int) -> Command:
        return Command.argv("echoserver", str(port))

    async def leftovers(self, backend: SandboxBackend) -> list[str]:
        return list(await self._driver.held())
