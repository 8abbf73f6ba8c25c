"""Many callers, one sandbox each or the same one: outcomes have an order, and nothing is left."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from pathlib import Path

import pytest

from firkin.law.errors import FirkinError, NotFound, SandboxUnavailable, WrongState
from firkin.law.ids import SandboxId
from firkin.law.processes import Command, Signal
from firkin.law.sandboxes import DeleteOptions, Graceful, SandboxFilter, SandboxSpec, Timeout
from firkin.law.states import EndCause, SandboxState
from tests.engine.conftest import SPEC, TEMPLATE, Engine, engine_over

ALLOWED = (NotFound, WrongState, SandboxUnavailable)


async def _disturb(engine: Engine, sandbox_id: SandboxId, dice: random.Random) -> None:
    control = engine.backend.sandboxes
    acts = (
        lambda: control.kill(sandbox_id, Signal.KILL),
        lambda: control.stop(sandbox_id, Graceful(0.01)),
        lambda: control.delete(sandbox_id, DeleteOptions(force=dice.random() < 0.5)),
        lambda: control.update_deadline(sandbox_id, Timeout(dice.choice([0, 0.01, 60]))),
        lambda: engine.driver.crash(sandbox_id, EndCause.OUT_OF_MEMORY),
        lambda: engine.backend.processes.run(sandbox_id, Command.shell("echo x")),
        lambda: control.list(SandboxFilter()),
    )
    for _ in range(4):
        with suppress(*ALLOWED):
            await dice.choice(acts)()
        await asyncio.sleep(dice.random() * 0.005)


async def _one_life(engine: Engine, seed: int) -> SandboxId:
    dice = random.Random(seed)
    spec = SandboxSpec.from_template(TEMPLATE, deadline=Timeout(dice.choice([0, 0.01, 60])))
    info = await engine.backend.sandboxes.create(spec)
    await asyncio.gather(*(_disturb(engine, info.id, random.Random(seed * 100 + n)) for n in range(3)))
    with suppress(NotFound):
        await engine.backend.sandboxes.delete(info.id, DeleteOptions(force=True))
    with pytest.raises(NotFound, match="it ended at"):
        await engine.backend.sandboxes.inspect(info.id)
    return info.id


@pytest.mark.thorough
@pytest.mark.parametrize("round", range(3))
async def test_acts_at_the_same_time_never_break_the_table(tmp_path: Path, round: int) -> None:
    async with engine_over(tmp_path / "state") as engine:
        ids = await asyncio.gather(*(_one_life(engine, round * 1000 + n) for n in range(40)))
        await engine.node.acts.drain(within_s=10)
        assert await engine.leftovers() == []
        for sandbox_id in ids:
            journal = await engine.node.records.journal(sandbox_id)
            assert [entry.was for entry in journal[1:]] == [entry.became.value for entry in journal[:-1]]
            assert journal[-1].became is SandboxState.DELETED
            last = await engine.node.records.last(sandbox_id)
            assert last is not None
            assert last.end_cause is not None


@pytest.mark.thorough
async def test_cancelled_creates_in_a_storm_leave_nothing(tmp_path: Path) -> None:
    async with engine_over(tmp_path / "state") as engine:
        dice = random.Random(7)
        creating = [asyncio.create_task(engine.backend.sandboxes.create(SPEC)) for _ in range(60)]
        for task in creating:
            if dice.random() < 0.6:
                task.cancel()
            await asyncio.sleep(dice.random() * 0.002)
        outcomes = await asyncio.gather(*creating, return_exceptions=True)
        assert not [outcome for outcome in outcomes if isinstance(outcome, FirkinError)]
        made = {outcome.id for outcome in outcomes if not isinstance(outcome, BaseException)}
        assert set(await engine.driver.held()) == made
        assert engine.node.admission.sandboxes == len(made)
