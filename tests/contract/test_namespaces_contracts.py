"""The namespaces driver, alone and under the engine, keeps the same promises as the one in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from firkin.drivers.boxes.host_checks import check
from firkin.drivers.namespaces.driver import NamespacesDriver
from firkin.engine.backend import LocalBackend
from firkin.host.roots import HostRootPreparer
from firkin.law.backend import SandboxBackend
from firkin.law.driver import BootPlan, Driver, PreparedRoot
from firkin.law.ids import SandboxId
from firkin.law.policies import Policies
from firkin.law.resources import MIB, SandboxResources
from firkin.law.templates import TemplateSpec
from firkin.testing import BackendContract, DriverContract
from firkin.testing.backend_suite import MakeBackend
from firkin.testing.driver_layer_obligations import LayerObligations

_READINESS = check(Path("/var/tmp"))

pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(not _READINESS.ready, reason="; ".join(_READINESS.reasons) or "ready"),
]


def _driver(state_dir: Path) -> NamespacesDriver:
    return NamespacesDriver.from_settings(state_dir, {"ready_slots": "3"})


def _said(line: str) -> None:
    """Progress of a preparation: nobody listens here."""


class TestNamespacesDriver(DriverContract):
    @pytest_asyncio.fixture(autouse=True)
    async def prepared(self, tmp_path: Path) -> AsyncIterator[None]:
        into = tmp_path / "template"
        into.mkdir()
        self._state = tmp_path / "state"
        self._state.mkdir()
        self._root: PreparedRoot = await HostRootPreparer().prepare(TemplateSpec.host(), into, _said)
        yield

    async def make_driver(self) -> Driver:
        return _driver(self._state)

    async def reopen(self, driver: Driver) -> Driver:
        await driver.aclose()
        later = _driver(self._state)
        await later.start()
        return later

    def boot_plan(self, sandbox_id: SandboxId) -> BootPlan:
        resources = SandboxResources(vcpus=1, memory_bytes=256 * MIB, disk_bytes=128 * MIB)
        return BootPlan(sandbox_id=sandbox_id, root=self._root.root, resources=resources)


class TestLayersByPath(LayerObligations):
    """The way of kernels that cannot take the layers of an overlay by descriptor."""

    prepared = TestNamespacesDriver.prepared
    boot_plan = TestNamespacesDriver.boot_plan

    async def make_driver(self) -> Driver:
        return NamespacesDriver.from_settings(self._state, {"ready_slots": "3", "attached_layers": "true"})


class TestNamespacesBackend(BackendContract):
    @pytest.fixture
    def make_backend(self, tmp_path: Path) -> MakeBackend:
        state = tmp_path / "state"

        async def make(policies: Policies) -> LocalBackend:
            self._driver = _driver(state)
            backend = LocalBackend(driver=self._driver, preparer=HostRootPreparer(), state_dir=state)
            await backend.start(policies)
            return backend

        return make

    async def leftovers(self, backend: SandboxBackend) -> list[str]:
        return list(await self._driver.live())
