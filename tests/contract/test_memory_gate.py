"""Nothing that a shut gate holds takes another step."""

from __future__ import annotations

import asyncio

import pytest

from firkin.drivers.memory.gate import Gate
from firkin.lifetimes import Children, children


class Steps:
    """Work that counts its steps and can be told to fail."""

    def __init__(self) -> None:
        self.taken = 0
        self.cancelled = False

    async def run(self, most: int = 10**9) -> int:
        try:
            while self.taken < most:
                self.taken += 1
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        return self.taken


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def held(owner: Children, gate: Gate, steps: Steps) -> asyncio.Task[int]:
    task = owner.start(gate.hold(steps.run), name="held")
    await turns()
    return task


async def test_an_open_gate_lets_work_run_to_its_end() -> None:
    assert await Gate().hold(lambda: Steps().run(5)) == 5


async def test_work_stands_still_while_the_gate_is_shut_and_then_goes_on() -> None:
    gate, steps = Gate(), Steps()
    async with children() as owner:
        await held(owner, gate, steps)
        gate.shut()
        await turns(2)
        stood = steps.taken
        await turns()
        assert steps.taken == stood > 0
        gate.open()
        await turns()
        assert steps.taken > stood


async def test_work_does_not_begin_behind_a_shut_gate() -> None:
    gate, steps = Gate(), Steps()
    gate.shut()
    async with children() as owner:
        await held(owner, gate, steps)
        assert steps.taken == 0
        gate.open()
        await turns()
        assert steps.taken > 0


async def test_a_gate_that_shuts_again_before_anybody_passed_holds() -> None:
    gate, steps = Gate(), Steps()
    gate.shut()
    async with children() as owner:
        await held(owner, gate, steps)
        gate.open()
        gate.shut()
        await turns()
        assert steps.taken == 0


async def test_a_failure_of_the_work_is_the_callers() -> None:
    async def fail() -> None:
        await asyncio.sleep(0)
        raise LookupError("as the test wished")

    with pytest.raises(LookupError):
        await Gate().hold(fail)


@pytest.mark.parametrize("shut", [True, False])
async def test_a_cancellation_reaches_the_work(shut: bool) -> None:
    gate, steps = Gate(), Steps()
    async with children() as owner:
        task = await held(owner, gate, steps)
        if shut:
            gate.shut()
            await turns()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert steps.cancelled


async def test_work_that_was_cancelled_before_it_began_leaves_no_warning() -> None:
    gate, steps = Gate(), Steps()
    async with children() as owner:
        for wait in (0, 1, 2):
            gate.shut()
            task = owner.start(gate.hold(steps.run), name="held")
            await turns(wait)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
    assert steps.taken == 0


async def test_no_time_passes_behind_a_shut_gate() -> None:
    gate, loop = Gate(), asyncio.get_running_loop()
    for _ in range(2):
        gate.shut()
        shut_at, inside = loop.time(), gate.now()
        await asyncio.sleep(0.01)
        gate.shut()
        assert gate.now() == inside
        gate.open()
        gate.open()
        assert gate.now() - inside <= loop.time() - shut_at - 0.009
