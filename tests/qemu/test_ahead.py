"""Machines that are woken ahead of need: what they become, and what is left of those that become nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from firkin.drivers.qemu.driver import QemuDriver
from firkin.drivers.qemu.instance import QemuInstance
from firkin.law.ids import SandboxId
from firkin.law.network import NetworkPolicy
from tests.contract.ahead_suite import Ahead, AheadSuite
from tests.qemu.homes import Home
from tests.qemu.marks import real_machines

pytestmark = real_machines


class _Machines(Ahead):
    driver: QemuDriver

    def machine(self, name: SandboxId) -> QemuInstance:
        return self.driver._ahead._shelf._ready[name].machine

    def waiting_pid(self, name: SandboxId) -> int:
        return self.machine(name).pid

    @property
    def names(self) -> set[str]:
        return self.driver._ahead.names


@pytest_asyncio.fixture
async def ahead(home: Home) -> AsyncIterator[_Machines]:
    driver = home.driver(ready_machines="1")
    await driver.start()
    machines = _Machines(driver, home.root, home.state)
    try:
        yield machines
    finally:
        await machines.close()


class TestQemuAhead(AheadSuite):
    async def test_one_that_waits_stands_still_and_reaches_nothing(self, ahead: _Machines) -> None:
        await ahead.asked_for()
        name = await ahead.promised()
        assert (await (await ahead.machine(name).monitor()).ask("query-status"))["status"] == "paused"
        assert ahead.driver._ground.networks.in_force(name) == NetworkPolicy()
        await ahead.gone(name)
