"""What contract tests of all drivers of boxes share: the host template, small plans, a restart over one state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from firkin.drivers.boxes.driver import BoxDriver
from firkin.drivers.boxes.tier import Tier
from firkin.drivers.gvisor.driver import GvisorDriver
from firkin.drivers.namespaces.driver import NamespacesDriver
from firkin.drivers.oci.driver import OciDriver
from firkin.engine.backend import LocalBackend
from firkin.law.backend import SandboxBackend
from firkin.law.driver import BootPlan, Driver, PreparedRoot
from firkin.law.ids import SandboxId
from firkin.law.policies import Policies
from firkin.law.resources import MIB, SandboxResources
from firkin.law.templates import TemplateSpec
from firkin.testing.backend_suite import MakeBackend
from tests.calm import calm

BoxKind = type[NamespacesDriver] | type[OciDriver] | type[GvisorDriver]


def require(tier: Tier, state: Path) -> None:
    """Skip, with the tier's own reasons, where this machine cannot do it."""
    preflight = tier.preflight(state)
    if not preflight.ready:
        pytest.skip("; ".join(preflight.reasons))


# Hundreds of drivers live for one test each: what they made ahead would be of use to none, and tests/*/test_preforks.py
# is about that.
_OPTIONS = {"ready_slots": "3", "ready_boxes": "0"}


@dataclass(frozen=True, slots=True)
class Prepared:
    """Prepares every template from the same files, which are not its own to change."""

    root: PreparedRoot

    async def prepare(self, spec: TemplateSpec, into: Path, report: Callable[[str], None]) -> PreparedRoot:
        return self.root


class BoxSuite:
    """Mixed into the contract: a driver of `kind` for each test."""

    kind: ClassVar[BoxKind]
    tier: ClassVar[Tier]
    options: ClassVar[dict[str, str]] = _OPTIONS

    @pytest.fixture(autouse=True)
    def prepared(self, tmp_path: Path, host_root: PreparedRoot) -> None:
        require(self.tier, tmp_path)
        self._state = tmp_path / "state"
        self._state.mkdir()
        self._root = host_root

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
    def make_backend(self, tmp_path: Path, host_root: PreparedRoot) -> MakeBackend:
        require(self.tier, tmp_path)
        state = tmp_path / "state"

        async def make(policies: Policies) -> LocalBackend:
            self._driver: BoxDriver = self.kind.from_settings(state, _OPTIONS)
            backend = LocalBackend(driver=self._driver, preparer=Prepared(host_root), state_dir=state, stalls=calm())
            await backend.start(policies)
            return backend

        return make

    async def leftovers(self, backend: SandboxBackend) -> list[str]:
        return list(await self._driver.live())
