"""What contract tests of all drivers of boxes share: the host template, small plans, a restart over one state."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import ClassVar

import pytest
import pytest_asyncio

from firkin.drivers.boxes.driver import BoxDriver
from firkin.drivers.boxes.tier import Tier
from firkin.drivers.gvisor.driver import GvisorDriver
from firkin.drivers.namespaces.driver import NamespacesDriver
from firkin.drivers.oci.driver import OciDriver
from firkin.engine.backend import LocalBackend
from firkin.host.roots import HostRootPreparer
from firkin.law.backend import SandboxBackend
from firkin.law.driver import BootPlan, Driver, PreparedRoot
from firkin.law.ids import SandboxId
from firkin.law.policies import Policies
from firkin.law.resources import MIB, SandboxResources
from firkin.law.templates import TemplateSpec
from firkin.testing.backend_suite import MakeBackend

BoxKind = type[NamespacesDriver] | type[OciDriver] | type[GvisorDriver]


def require(tier: Tier, state: Path) -> None:
    """Skip, with the tier's own reasons, where this machine cannot do it."""
    preflight = tier.preflight(state)
    if not preflight.ready:
        pytest.skip("; ".join(preflight.reasons))


def _said(line: str) -> None:
    """Progress of a preparation: nobody listens here."""


class BoxSuite:
    """Mixed into the contract: a driver of `kind` for each test."""

    kind: ClassVar[BoxKind]
    tier: ClassVar[Tier]
    # Boxes made ahead have names of their own giving, by which no driver suite asks.
    options: ClassVar[dict[str, str]] = {"ready_slots": "3", "ready_boxes": "0"}

    @pytest_asyncio.fixture(autouse=True)
    async def prepared(self, tmp_path: Path) -> AsyncIterator[None]:
        require(self.tier, tmp_path)
        into = tmp_path / "template"
        into.mkdir()
        self._state = tmp_path / "state"
        self._state.mkdir()
        self._root: PreparedRoot = await HostRootPreparer().prepare(TemplateSpec.host(), into, _said)
        yield

    async def make_driver(self) -> Driver:
        return self.kind.from_settings(self._state, self.options)

    async def reopen(self, driver: Driver) -> Driver:
        await driver.aclose()
        later = await self.make_driver()
        await later.start()
        return later

    def boot_plan(self, sandbox_id: SandboxId) -> BootPlan:
        resources = SandboxResources(vcpus=1, memory_bytes=256 * MIB, disk_bytes=128 * MIB)
        return BootPlan(sandbox_id=sandbox_id, root=self._root.root, resources=resources)


class BoxBackendSuite:
    """As `BoxSuite`, under the engine."""

    kind: ClassVar[BoxKind]
    tier: ClassVar[Tier]

    @pytest.fixture
    def make_backend(self, tmp_path: Path) -> MakeBackend:
        require(self.tier, tmp_path)
        state = tmp_path / "state"

        async def make(policies: Policies) -> LocalBackend:
            self._driver: BoxDriver = self.kind.from_settings(state, {"ready_slots": "3"})
            backend = LocalBackend(driver=self._driver, preparer=HostRootPreparer(), state_dir=state)
            await backend.start(policies)
            return backend

        return make

    async def leftovers(self, backend: SandboxBackend) -> list[str]:
        return list(await self._driver.live())
