"""The memory driver keeps every promise of a driver."""

from __future__ import annotations

import asyncio

import pytest

from firkin.drivers.memory import MemoryDriver
from firkin.law.driver import BootPlan, RootFilesystem
from firkin.law.errors import BackendFailure, InvalidSpec
from firkin.law.ids import SandboxId
from firkin.law.resources import SandboxResources
from firkin.law.states import EndCause
from firkin.testing.driver_contract import DriverContract


def plan(sandbox_id: str) -> BootPlan:
    return BootPlan(
        sandbox_id=SandboxId(sandbox_id), root=RootFilesystem(base="/nonexistent"), resources=SandboxResources()
    )


class TestMemoryDriver(DriverContract):
    async def make_driver(self) -> MemoryDriver:
        return MemoryDriver()

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
