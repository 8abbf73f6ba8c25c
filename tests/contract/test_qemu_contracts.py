"""The microVM driver keeps the same promises as the others, with memory that goes on where it stopped."""

from __future__ import annotations

from pathlib import Path

import pytest
import pytest_asyncio

from firkin.drivers.qemu.preflight import check
from firkin.law.driver import BootPlan, Driver
from firkin.law.ids import SandboxId
from firkin.law.resources import MIB, SandboxResources
from firkin.testing import DriverContract
from tests.qemu.homes import Home, qemu_home

_READINESS = check(Path("/var/tmp"), "")

pytestmark = [
    pytest.mark.host,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not _READINESS.ready, reason="; ".join(_READINESS.reasons) or "ready"),
]


home = qemu_home


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
        resources = SandboxResources(vcpus=1, memory_bytes=256 * MIB, disk_bytes=128 * MIB)
        return BootPlan(sandbox_id=sandbox_id, root=self._home.root, resources=resources)
