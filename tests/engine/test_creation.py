"""Every step of a create, failing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from firkin.drivers.memory import MemoryDriver
from firkin.drivers.memory.driver import MemoryInstance
from firkin.drivers.memory.pipes import MemoryChannel
from firkin.law.driver import BootPlan, InstanceEnd
from firkin.law.errors import (
    BackendFailure,
    FirkinError,
    IoFailure,
    NotFound,
    SandboxUnavailable,
    WrongState,
)
from firkin.law.ids import SandboxId, TemplateId
from firkin.law.processes import Command
from firkin.law.sandboxes import DeleteOptions, SandboxFilter, SandboxSpec
from firkin.law.states import EndCause, SandboxState
from firkin.law.templates import TemplateState
from tests.engine.conftest import SPEC, Engine, engine_over, eventually


class Stumbling(MemoryDriver):
    """Fails at the step that a test names."""

    step = ""

    async def boot(self, plan: BootPlan) -> MemoryInstance:
        instance = await super().boot(plan)
        if self.step == "dial":
            instance.dial = self._no_dial  # type: ignore[method-assign]
        if self.step == "destroy":
            instance.dial = self._no_dial  # type: ignore[method-assign]
            instance.destroy = self._no_destroy  # type: ignore[method-assign]
        return instance

    async def _no_dial(self) -> MemoryChannel:
        raise SandboxUnavailable("dial", "x", "nobody answers")

    async def _no_destroy(self) -> None:
        if self.step == "destroy":
            raise OSError("device is busy")


@pytest.fixture
async def stumbling(tmp_path: Path) -> AsyncIterator[Engine]:
    async with engine_over(tmp_path / "state", driver=Stumbling()) as started:
        yield started


async def _ends(engine: Engine) -> list[str]:
    rows = await engine.node.records._database.run(
        lambda connection: connection.execute("SELECT sandbox_id, became, cause FROM journal ORDER BY seq").fetchall()
    )
    return [f"{became}: {cause}" for _, became, cause in rows]


async def test_created_sandbox_runs_and_answers(engine: Engine) -> None:
    info = await engine.backend.sandboxes.create(SPEC)
    assert info.state is SandboxState.RUNNING
    assert info.deadline_at is not None
    output = await engine.backend.processes.run(info.id, Command.shell("echo here"))
    assert output.stdout == b"here\n"


async def test_failed_boot_leaves_nothing_but_its_reason(engine: Engine) -> None:
    engine.driver.faults.fail_next_boot(OSError("no loop device"))
    with pytest.raises(BackendFailure, match="no loop device"):
        await engine.backend.sandboxes.create(SPEC)
    assert await engine.leftovers() == []
    assert (await _ends(engine))[-2:] == [
        "failed: create failed: create a sandbox failed in memory: no loop device",
        "deleted: create failed: create a sandbox failed in memory: no loop device",
    ]


async def test_unexpected_driver_error_is_undone_too(engine: Engine) -> None:
    engine.driver.faults.fail_next_boot(ZeroDivisionError("bug"))
    with pytest.raises(ZeroDivisionError):
        await engine.backend.sandboxes.create(SPEC)
    assert await engine.leftovers() == []


async def test_unreachable_agent_undoes_the_boot(stumbling: Engine) -> None:
    stumbling.driver.step = "dial"  # type: ignore[attr-defined]
    with pytest.raises(SandboxUnavailable):
        await stumbling.backend.sandboxes.create(SPEC)
    assert await stumbling.leftovers() == []


async def test_cancelled_caller_leaves_nothing_behind(engine: Engine) -> None:
    engine.driver.faults.hold_boots()
    creating = asyncio.create_task(engine.backend.sandboxes.create(SPEC))
    await engine.driver.faults.boot_waits.wait()
    creating.cancel()
    with pytest.raises(asyncio.CancelledError):
        await creating
    engine.driver.faults.release_boots()
    assert await engine.leftovers() == []
    assert "the caller went away" in (await _ends(engine))[-1]


@pytest.mark.parametrize("method", ["add", "change"])
async def test_failed_record_undoes_the_create(engine: Engine, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    async def full(*_: object, **keywords: object) -> None:
        raise IoFailure("write", "the state database", "disk full")

    with monkeypatch.context() as patch:
        patch.setattr(engine.node.records, method, full)
        with pytest.raises(IoFailure, match="disk full"):
            await engine.backend.sandboxes.create(SPEC)
    assert await engine.leftovers() == []


async def test_a_create_whose_end_cannot_be_recorded_leaves_no_ghost(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def confused(*_: object, **keywords: object) -> None:
        raise UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed")

    with monkeypatch.context() as patch:
        patch.setattr(engine.node.records, "add", confused)
        patch.setattr(engine.node.records, "change", confused)
        with pytest.raises(UnicodeEncodeError):
            await engine.backend.sandboxes.create(SPEC)
    assert await engine.leftovers() == []


async def test_what_cannot_be_undone_stays_visible_and_can_be_deleted_later(stumbling: Engine) -> None:
    driver = stumbling.driver
    assert isinstance(driver, Stumbling)
    driver.step = "destroy"
    with pytest.raises(SandboxUnavailable):
        await stumbling.backend.sandboxes.create(SPEC)
    (info,) = await stumbling.backend.sandboxes.list(SandboxFilter())
    assert info.state is SandboxState.FAILED
    assert "device is busy" in info.end_detail
    driver.step = ""
    await driver._instances[info.id].finish(InstanceEnd(EndCause.REQUESTED))  # the device is free again
    await stumbling.backend.sandboxes.delete(info.id, DeleteOptions())
    assert await stumbling.leftovers() == []


async def test_unknown_template_is_refused_before_anything_is_done(engine: Engine) -> None:
    with pytest.raises(NotFound, match="template 'none'"):
        await engine.backend.sandboxes.create(SandboxSpec.from_template("none"))
    assert await engine.leftovers() == []
    assert await _ends(engine) == []


async def test_instance_that_dies_in_the_middle_of_a_create_fails_it(engine: Engine) -> None:
    engine.driver.faults.hold_boots()
    creating = asyncio.create_task(engine.backend.sandboxes.create(SPEC))
    await engine.driver.faults.boot_waits.wait()
    (sandbox_id,) = await engine.driver.held()
    await engine.driver.crash(sandbox_id, EndCause.OUT_OF_MEMORY)
    engine.driver.faults.release_boots()
    with pytest.raises(FirkinError):
        await creating
    assert await engine.leftovers() == []


async def test_failed_template_is_refused_with_its_reason(engine: Engine) -> None:
    record = engine.node.templates._known[TemplateId("plain")]
    engine.node.templates._known[TemplateId("half")] = replace(
        record, info=replace(record.info, id=TemplateId("half"), state=TemplateState.FAILED, failure="no network")
    )
    with pytest.raises(WrongState, match="failed: no network"):
        await engine.backend.sandboxes.create(SandboxSpec.from_template("half"))


async def test_ids_are_long_random_and_distinct(engine: Engine) -> None:
    ids = {(await engine.backend.sandboxes.create(SPEC)).id for _ in range(20)}
    assert len(ids) == 20
    assert all(len(sandbox_id) == 21 and SandboxId(sandbox_id) for sandbox_id in ids)
    await eventually(lambda: engine.node.admission.sandboxes == 20)
