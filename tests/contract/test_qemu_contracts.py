"""The microVM driver keeps the same promises as the others, with memory that goes on where it stopped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import pytest_asyncio

from firkin.drivers.qemu.driver import QemuDriver
from firkin.drivers.qemu.preflight import check
from firkin.engine.backend import LocalBackend
from firkin.law.backend import SandboxBackend
from firkin.law.driver import BootPlan, Driver, PreparedRoot, RootFilesystem
from firkin.law.ids import SandboxId
from firkin.law.policies import Policies
from firkin.law.resources import MIB, SandboxResources
from firkin.law.snapshots import SnapshotKind
from firkin.law.templates import ImageConfig, TemplateSpec
from firkin.testing import BackendContract, DriverContract
from firkin.testing.backend_suite import MakeBackend
from tests.calm import calm
from tests.qemu.homes import Home, qemu_home

_READINESS = check(Path("/var/tmp"), "")

pytestmark = [
    pytest.mark.host,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not _READINESS.ready, reason="; ".join(_READINESS.reasons) or "ready"),
]


SIZE = SandboxResources(vcpus=1, memory_bytes=256 * MIB, disk_bytes=128 * MIB)
home = qemu_home


@pytest.mark.slow
class TestQemuDriver(DriverContract):
    @pytest_asyncio.fixture(autouse=True)
    async def prepared(self, home: Home) -> None:
        self._home = home

    async def make_driver(self) -> Driver:
        return self._home.driver()

    async def reopen(self, driver: Driver) -> Driver:
        await driver.aclose()
        later = await self.make_driver()
        await later.start()
        return later

    def boot_plan(self, sandbox_id: SandboxId) -> BootPlan:
        return BootPlan(sandbox_id=sandbox_id, root=self._home.root, resources=SIZE)


@dataclass(frozen=True, slots=True)
class OneRoot:
    """Prepares every template from the same small root, so that its machine is booted and stored once."""

    root: RootFilesystem

    async def prepare(self, spec: TemplateSpec, into: Path, report: Callable[[str], None]) -> PreparedRoot:
        return PreparedRoot(root=self.root, config=ImageConfig(), size_bytes=0, digest="the small root")


@pytest.mark.slow
class TestQemuBackend(BackendContract):
    """Under the engine, all of it: a quarter of an hour where machines are emulated.

    The driver's folder is the module's, the engine's each test's own.
    """

    captures = SnapshotKind.CONTINUATION

    @pytest_asyncio.fixture
    async def make_backend(self, home: Home, tmp_path: Path) -> MakeBackend:
        async def make(policies: Policies) -> LocalBackend:
            self._driver: QemuDriver = home.driver()
            backend = LocalBackend(
                driver=self._driver, preparer=OneRoot(home.root), state_dir=tmp_path / "state", stalls=calm()
            )
            await backend.start(replace(policies, default_resources=SIZE))
            return backend

        return make

    async def leftovers(self, backend: SandboxBackend) -> list[str]:
        return list(await self._driver.live())
