"""The memory driver keeps every promise of a driver."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from firkin.drivers.memory import MemoryDriver
from firkin.law.capabilities import Capabilities, CapabilityName, Permanent
from firkin.law.driver import BootPlan, Instance, RootFilesystem
from firkin.law.errors import BackendFailure, InvalidSpec, UnsupportedCapability
from firkin.law.ids import SandboxId
from firkin.law.resources import SandboxResources
from firkin.law.states import EndCause
from firkin.testing.driver_contract import DriverContract, InstanceObligations
from firkin.testing.driver_identity_obligations import FreezeObligations, IdentityObligations


def plan(sandbox_id: str) -> BootPlan:
    return BootPlan(
        sandbox_id=SandboxId(sandbox_id), root=RootFilesystem(base="/nonexistent"), resources=SandboxResources()
    )


class TestMemoryDriver(DriverContract):
    async def make_driver(self) -> MemoryDriver:
        return MemoryDriver()

    def boot_plan(self, sandbox_id: SandboxId) -> BootPlan:
        return plan(sandbox_id)


NO = Permanent("the unpausing driver does not offer it")
PAUSES = (CapabilityName.PAUSE_CAPTURE, CapabilityName.PAUSE_RESUME)


class UnpausingInstance:
    """One in memory that cannot stand still, and says so."""

    def __init__(self, instance: Instance) -> None:
        self._instance = instance

    def __getattr__(self, name: str) -> Any:
        return getattr(self._instance, name)

    async def freeze(self) -> None:
        raise UnsupportedCapability("freeze", CapabilityName.PAUSE_CAPTURE, NO)

    async def thaw(self) -> None:
        raise UnsupportedCapability("thaw", CapabilityName.PAUSE_RESUME, NO)


class UnpausingDriver(MemoryDriver):
    async def capabilities(self) -> Capabilities:
        return (await super().capabilities()).with_unsupported(NO, *PAUSES)

    async def boot(self, plan: BootPlan) -> Any:
        return UnpausingInstance(await super().boot(plan))


class TestUnpausingDriver(InstanceObligations, FreezeObligations, IdentityObligations):
    """A driver that honestly refuses pauses keeps the contract."""

    async def make_driver(self) -> MemoryDriver:
        return UnpausingDriver()

    def boot_plan(self, sandbox_id: SandboxId) -> BootPlan:
        return plan(sandbox_id)


async def test_a_failed_boot_leaves_nothing() -> None:
    driver = MemoryDriver()
    driver.faults.fail_next_boot(BackendFailure("boot instance", "memory", "as the test wished"))
    with pytest.raises(BackendFailure):
        await driver.boot(plan("failed"))
    assert list(await driver.held()) == []


async def test_a_boot_cancelled_half_way_leaves_nothing() -> None:
    driver = MemoryDriver()
    driver.faults.hold_boots()
    boot = asyncio.get_running_loop().create_task(driver.boot(plan("held")))
    await driver.faults.boot_waits.wait()
    boot.cancel()
    with pytest.raises(asyncio.CancelledError):
        await boot
    assert list(await driver.held()) == []


async def test_a_crash_ends_the_instance_for_its_cause() -> None:
    driver = MemoryDriver()
    instance = await driver.boot(plan("crashed"))
    await driver.crash(SandboxId("crashed"), EndCause.OUT_OF_MEMORY, "too greedy")
    end = await instance.ended()
    assert (end.cause, end.detail) == (EndCause.OUT_OF_MEMORY, "too greedy")
    assert list(await driver.live()) == []


def test_unknown_options_are_refused_by_name(tmp_path) -> None:
    with pytest.raises(InvalidSpec, match="colour"):
        MemoryDriver.from_settings(tmp_path, {"colour": "blue"})
