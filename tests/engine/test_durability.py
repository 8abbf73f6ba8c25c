"""What was answered survives the death of the process; what was not answered is found."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from firkin.engine.database import Database
from firkin.engine.records import Records
from firkin.law.states import EndCause, SandboxState
from tests.engine.conftest import engine_over

_SERVER = """
import asyncio, sys
from pathlib import Path
from firkin.drivers.memory import MemoryDriver, MemoryRootPreparer
from firkin.engine.backend import LocalBackend
from firkin.law.ids import TemplateId
from firkin.law.policies import Capacity, Policies
from firkin.law.sandboxes import SandboxSpec
from firkin.law.templates import TemplateSpec

async def main():
    backend = LocalBackend(driver=MemoryDriver(), preparer=MemoryRootPreparer(), state_dir=Path(sys.argv[1]))
    await backend.start(Policies(capacity=Capacity(memory_floor_bytes=0, disk_floor_bytes=0)))
    await backend.templates.prepare(TemplateSpec.host(id=TemplateId("plain")))
    async def create():
        while True:
            info = await backend.sandboxes.create(SandboxSpec.from_template("plain"))
            print(info.id, flush=True)
    await asyncio.gather(*(create() for _ in range(4)))

asyncio.run(main())
"""


def _answered_before_the_kill(state: Path) -> list[str]:
    server = subprocess.Popen([sys.executable, "-c", _SERVER, str(state)], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    answered = [server.stdout.readline().strip() for _ in range(50)]
    os.kill(server.pid, signal.SIGKILL)
    answered += server.stdout.read().split()[:-1]  # the last line may be cut
    server.stdout.close()
    server.wait()
    return answered


@pytest.mark.thorough
async def test_every_answered_create_is_remembered_after_a_kill(tmp_path: Path) -> None:
    state = tmp_path / "state"
    answered = await asyncio.to_thread(_answered_before_the_kill, state)
    database = await Database.open(state / "state.db")
    standing = {record.info.id: record.info for record in await Records(database).standing()}
    await database.aclose()
    assert {standing[sandbox_id].state for sandbox_id in answered} == {SandboxState.RUNNING}

    async with engine_over(state) as engine:
        for sandbox_id, info in standing.items():
            last = await engine.node.records.last(sandbox_id)
            assert last is not None
            created = info.state is not SandboxState.CREATING
            assert last.end_cause is (EndCause.LOST if created else EndCause.CREATE_FAILED)
