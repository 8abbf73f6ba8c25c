"""Machines that are woken ahead of need: what they become, and what is left of those that become nothing."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from firkin.drivers.qemu.ahead import WaitingMachine
from firkin.drivers.qemu.driver import QemuDriver
from firkin.drivers.qemu.preflight import check
from firkin.law.driver import BootPlan
from firkin.law.ids import SandboxId
from firkin.law.network import NetworkPolicy
from firkin.law.resources import MIB, SandboxResources
from firkin.testing.driver_suite import said
from tests.qemu.homes import Home

_READINESS = check(Path("/var/tmp"), "")

pytestmark = [
    pytest.mark.host,
    pytest.mark.asyncio,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not _READINESS.ready, reason="; ".join(_READINESS.reasons) or "ready"),
]

SIZE = SandboxResources(vcpus=1, memory_bytes=256 * MIB, disk_bytes=128 * MIB)
WHO = (
    "hostname; cat /etc/hostname /etc/machine-id /proc/sys/kernel/random/boot_id; head -c 16 /dev/urandom | od -An -tx1"
)


class Ahead:
    """A driver that wakes machines ahead, one at most, and plans for it."""

    def __init__(self, driver: QemuDriver, home: Home) -> None:
        self.driver = driver
        self.home = home

    def plan(self, name: str, resources: SandboxResources = SIZE) -> BootPlan:
        machine_id = os.urandom(16).hex()
        root = self.home.root
        plan = BootPlan(sandbox_id=SandboxId(name), root=root, resources=resources, hostname=name, repeats=True)
        return replace(plan, machine_id=machine_id)

    async def asked_for(self) -> None:
        """The first one of its kind, which leads to others."""
        instance = await self.driver.boot(self.plan("first"))
        await instance.destroy()
        await self.driver.discard(SandboxId("first"))

    async def promised(self) -> SandboxId:
        async with asyncio.timeout(120):
            while (name := self.driver.prepared("", self.home.root, SIZE)) is None:  # noqa: ASYNC110 — nobody tells
                await asyncio.sleep(0.02)
        return name

    async def gone(self, name: SandboxId) -> None:
        await self.driver.discard(name)
        assert not self.home.state.joinpath("disks", f"{name}.img").exists()

    def held(self, name: SandboxId) -> WaitingMachine:
        return self.driver._ahead._ready[name]


@asynccontextmanager
async def waking_ahead(home: Home, most: int = 1) -> AsyncIterator[Ahead]:
    driver = home.driver(ready_machines=str(most))
    await driver.start()
    try:
        yield Ahead(driver, home)
    finally:
        await driver.sweep([])
        left = list(await driver.live())
        await driver.aclose()
    assert left == []
    assert [path for path in home.state.joinpath("disks").glob("*.img") if not path.name.startswith("base-")] == []


async def test_a_machine_woken_ahead_becomes_a_sandbox_of_its_own(home: Home) -> None:
    async with waking_ahead(home) as ahead:
        await ahead.asked_for()
        told = []
        for _ in range(2):
            name = await ahead.promised()
            waiting = ahead.held(name).machine.pid
            wanted = replace(ahead.plan(name), network=NetworkPolicy(internet=True))
            began = time.monotonic()
            instance = await ahead.driver.boot(wanted)
            took_s = time.monotonic() - began
            assert instance.pid == waiting
            answer = (await said(instance, WHO)).splitlines()
            assert answer[:3] == [name, name, wanted.machine_id]
            assert abs(int(await said(instance, "date +%s")) - time.time()) < 2
            assert (await instance.isolation()).network == wanted.network
            assert list(await ahead.driver.live()) == [name]
            told.append(answer[3:])
            await instance.destroy()
            await ahead.gone(name)
            assert took_s < 10
        assert not set(told[0]) & set(told[1])


async def test_one_that_waits_stands_still_reaches_nothing_and_is_nobodys(home: Home) -> None:
    async with waking_ahead(home) as ahead:
        await ahead.asked_for()
        name = await ahead.promised()
        machine = ahead.held(name).machine
        assert (await (await machine.monitor()).ask("query-status"))["status"] == "paused"
        assert ahead.driver._ground.networks.in_force(name) == NetworkPolicy()
        assert list(await ahead.driver.live()) == []
        assert await ahead.driver.sweep([]) == []  # it is not swept away, either
        await ahead.gone(name)
        assert machine.pid not in map(int, filter(str.isdigit, os.listdir("/proc")))


async def test_one_that_dies_waiting_is_replaced(home: Home) -> None:
    async with waking_ahead(home) as ahead:
        await ahead.asked_for()
        name = await ahead.promised()
        os.kill(ahead.held(name).machine.pid, signal.SIGKILL)
        later = await ahead.promised()
        assert later != name
        await ahead.gone(later)


async def test_one_that_dies_when_it_is_handed_over_costs_its_caller_only_time(home: Home) -> None:
    async with waking_ahead(home) as ahead:
        await ahead.asked_for()
        name = await ahead.promised()
        machine = ahead.held(name).machine
        dead = machine.pid
        os.kill(dead, signal.SIGSTOP)  # it does not answer, and then it is gone
        async with asyncio.TaskGroup() as tasks:
            booting = tasks.create_task(ahead.driver.boot(ahead.plan(name)))
            await asyncio.sleep(0.05)
            os.kill(dead, signal.SIGKILL)
        instance = booting.result()
        assert instance.pid != dead
        assert await said(instance, "hostname") == f"{name}\n"
        await instance.destroy()
        await ahead.gone(name)


async def test_a_promise_that_does_not_fit_is_ended_and_another_made(home: Home) -> None:
    async with waking_ahead(home) as ahead:
        await ahead.asked_for()
        name = await ahead.promised()
        waiting = ahead.held(name).machine.pid
        larger = replace(SIZE, memory_bytes=320 * MIB)
        instance = await ahead.driver.boot(replace(ahead.plan(name, larger), repeats=False))
        assert instance.pid != waiting
        assert int(await said(instance, "read -r _ kib _ < /proc/meminfo; echo $kib")) > 256 << 10
        await instance.destroy()
        await ahead.gone(name)


async def test_a_caller_that_gives_up_leaves_nothing(home: Home) -> None:
    async with waking_ahead(home) as ahead:
        await ahead.asked_for()
        given_up = 0
        for after_s in (0.0, 0.003, 0.01, 0.03):
            name = await ahead.promised()
            boot = asyncio.create_task(ahead.driver.boot(ahead.plan(name)))
            await asyncio.sleep(after_s)
            if boot.cancel():
                given_up += 1
                with pytest.raises(asyncio.CancelledError):
                    await boot
            else:  # it took no longer
                await (await boot).destroy()
            assert name not in await ahead.driver.live()
            await ahead.gone(name)
        assert given_up >= 1


async def test_what_does_not_repeat_leads_to_none(home: Home) -> None:
    async with waking_ahead(home) as ahead:
        instance = await ahead.driver.boot(replace(ahead.plan("once"), repeats=False))
        await instance.destroy()
        await ahead.gone(SandboxId("once"))
        await asyncio.sleep(0.1)
        assert ahead.driver._ahead.names == set()
