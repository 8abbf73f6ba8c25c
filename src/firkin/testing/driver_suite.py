"""What the driver obligations share: who supplies the driver, and how an instance is asked."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import pytest_asyncio

from firkin.law.capabilities import CapabilityName
from firkin.law.driver import BootPlan, Driver, Instance
from firkin.law.ids import SandboxId
from firkin.testing.conversation import Conversation

ENDS_WITHIN_S = 10.0


class DriverSuite:
    """Supply `make_driver` and `boot_plan`; `reopen` too where a later process can find what an earlier one booted."""

    pytestmark = pytest.mark.asyncio

    async def make_driver(self) -> Driver:
        """A new driver, not started."""
        raise NotImplementedError

    def boot_plan(self, sandbox_id: SandboxId) -> BootPlan:
        raise NotImplementedError

    async def reopen(self, driver: Driver) -> Driver:
        """Close `driver` and return the started one that a restarted server would have, over the same substrate."""
        return driver

    async def _restarted(self, driver: Driver) -> Driver:
        self._current: Driver = await self.reopen(driver)
        return self._current

    @pytest_asyncio.fixture
    async def driver(self) -> AsyncIterator[Driver]:
        driver = await self.make_driver()
        await driver.start()
        self._current = driver
        try:
            yield driver
        finally:
            await self._current.sweep(keep=())
            left = list(await self._current.live())
            await self._current.aclose()
        assert left == [], f"instances outlived the test's sweep: {left}"


async def needs(driver: Driver, *names: CapabilityName) -> None:
    """Skip the test, with the driver's own reason, where one of `names` is refused."""
    capabilities = await driver.capabilities()
    for name in names:
        if not capabilities.supports(name):
            pytest.skip(f"{name.value}: {capabilities.refusal(name)}")


@asynccontextmanager
async def talking(instance: Instance) -> AsyncIterator[Conversation]:
    async with await Conversation.open(await instance.dial()) as talk:
        yield talk


async def said(instance: Instance, text: str) -> str:
    """What shell text that must succeed writes, as root."""
    async with talking(instance) as talk:
        answer = await talk.run("sh", "-c", text)
    assert answer.result == {"exit": 0}, (text, answer.result, answer.fault, bytes(answer.stderr))
    return bytes(answer.stdout).decode()


async def begun(instance: Instance, text: str) -> None:
    """Start shell text that goes on after the connection that began it."""
    async with talking(instance) as talk:
        stream = await talk.request("start", argv=["sh", "-c", text], env={}, cwd="", user="", stdin=False, pty=None)
        assert await talk.event(stream), talk.answers[stream].fault


async def becomes(instance: Instance, text: str, wanted: str) -> None:
    """Ask shell text again and again until it writes `wanted`."""
    until = time.monotonic() + ENDS_WITHIN_S
    while (answer := await said(instance, text)) != wanted:
        assert time.monotonic() < until, f"{text!r} still says {answer!r}"
