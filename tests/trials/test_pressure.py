"""Real sandboxes on a machine that runs out: of disk, on a file system of the test's own, and of memory, by floors
that are set just below what is free."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from firkin.engine.admission import HostGauge
from firkin.engine.backend import LocalBackend
from firkin.engine.clock import SystemClock
from firkin.engine.pauses import LocalPauses
from firkin.law.errors import CapacityRejected, RejectReason
from firkin.law.ids import SandboxId, TemplateId
from firkin.law.policies import Capacity, Policies
from firkin.law.pressure import PressurePolicy, PressureReason, PressureState
from firkin.law.processes import Command
from firkin.law.resources import GIB, MIB
from firkin.law.sandboxes import SandboxInfo, SandboxSpec
from firkin.law.snapshots import PauseOptions, ResumeOptions
from firkin.law.templates import TemplateSpec
from tests.namespaces.conftest import backend_at

SIZE = 1536 * MIB
SPEC = SandboxSpec.from_template(TemplateId("base"))
HOG = """
import time
held = []
for _ in range({pieces}):
    piece = bytearray(256 << 20)
    piece[::4096] = bytes([1]) * len(piece[::4096])
    held.append(piece)
    time.sleep(0.1)
input()
"""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1.5 GiB that can be filled without harm."""
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "firkin-trial", place], check=True, timeout=30)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True, timeout=30)


@asynccontextmanager
async def node_with(state_dir: Path, capacity: Capacity, pressure: PressurePolicy) -> AsyncIterator[LocalBackend]:
    backend = backend_at(state_dir)
    await backend.start(Policies(capacity=capacity, pressure=pressure))
    try:
        await backend.templates.prepare(TemplateSpec.host(id=TemplateId("base")))
        yield backend
    finally:
        await backend.aclose(kill_all=True)


def pauses_of(backend: LocalBackend) -> LocalPauses:
    assert backend.pauses is not None
    return backend.pauses


def state_of(backend: LocalBackend) -> PressureState:
    return backend._started().pressure.status().plan.state


async def becomes(holds: Callable[[], bool], within_s: float) -> float:
    """How many seconds it took."""
    began = time.monotonic()
    async with asyncio.timeout(within_s):
        while not holds():  # noqa: ASYNC110 — what is waited for is the machine's own state
            await asyncio.sleep(0.02)
    return time.monotonic() - began


async def say(backend: LocalBackend, sandbox_id: SandboxId, text: str) -> str:
    output = await backend.processes.run(sandbox_id, Command.shell(text))
    return output.stdout.decode().strip()


async def refused(backend: LocalBackend) -> CapacityRejected:
    with pytest.raises(CapacityRejected) as error:
        await backend.sandboxes.create(SPEC)
    return error.value


async def test_a_disk_that_fills_up_stops_new_work_alone_and_a_frozen_disk_gives_back(small_disk: Path) -> None:
    capacity = Capacity(memory_floor_bytes=0, disk_floor_bytes=200 * MIB)
    pressure = PressurePolicy(refill_disk_bytes=500 * MIB, cpu_stall_pct=101, io_stall_pct=101)
    async with node_with(small_disk / "state", capacity, pressure) as backend:
        worker, sleeper = [await backend.sandboxes.create(SPEC) for _ in range(2)]
        wasted = "dd if=/dev/urandom of=/tmp/big bs=1M count=300 status=none; sync; rm /tmp/big; sync"
        await say(backend, sleeper.id, wasted)
        await pauses_of(backend).pause(sleeper.id, PauseOptions())
        free = HostGauge(small_disk, SystemClock()).read().disk_bytes
        ballast = small_disk / "ballast"
        with ballast.open("wb") as file:  # 450 MiB stay: below the refill floor, above the floor
            os.posix_fallocate(file.fileno(), 0, free - 450 * MIB)
        await becomes(lambda: state_of(backend) is PressureState.SHRINK, 5)
        took = await becomes(lambda: backend._started().pressure.figures.trimmed_bytes > 200 * MIB, 10)
        assert took < 5
        await becomes(lambda: state_of(backend) in (PressureState.RECOVERY, PressureState.NOMINAL), 10)
        assert await say(backend, worker.id, "echo still here") == "still here"

        free = HostGauge(small_disk, SystemClock()).read().disk_bytes
        with (small_disk / "more").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, free - 150 * MIB)
        await becomes(lambda: state_of(backend) is PressureState.CRITICAL, 5)
        error = await refused(backend)
        assert (error.refusal.reason, error.short) == (RejectReason.PRESSURE, "free disk on the host")
        writes = "dd if=/dev/zero of=/tmp/own bs=1M count=20 status=none && echo ok"
        assert await say(backend, worker.id, writes) == "ok"
        assert backend._started().pressure.status().plan.reasons == {PressureReason.DISK_FLOOR}

        ballast.unlink()
        (small_disk / "more").unlink()
        await becomes(lambda: state_of(backend) is PressureState.NOMINAL, 15)
        assert isinstance(await backend.sandboxes.create(SPEC), SandboxInfo)
        await pauses_of(backend).resume(sleeper.id, ResumeOptions())
        assert await say(backend, sleeper.id, "echo awake") == "awake"


async def test_memory_that_somebody_else_takes_stops_new_work_until_it_is_given_back(tmp_path: Path) -> None:
    available = HostGauge(tmp_path, SystemClock()).read().memory_bytes
    if available < 6 * GIB:
        pytest.skip("less than 6 GiB of memory are free")
    floor = available * 85 // 100
    capacity = Capacity(memory_floor_bytes=floor, disk_floor_bytes=0)
    pressure = PressurePolicy(refill_memory_bytes=floor, cpu_stall_pct=101, io_stall_pct=101)
    async with node_with(tmp_path / "state", capacity, pressure) as backend:
        worker = await backend.sandboxes.create(SPEC)
        hog = await asyncio.create_subprocess_exec(
            "python3",
            *("-c", HOG.format(pieces=(available // 2) // (256 * MIB))),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            await becomes(lambda: state_of(backend) is PressureState.CRITICAL, 30)
            hog.send_signal(signal.SIGSTOP)  # it has taken enough
            error = await refused(backend)
            assert (error.refusal.reason, error.short) == (RejectReason.PRESSURE, "free memory on the host")
            assert await say(backend, worker.id, "echo still here") == "still here"
        finally:
            hog.kill()
            await hog.wait()
        await becomes(lambda: state_of(backend) is not PressureState.CRITICAL, 20)
        assert isinstance(await backend.sandboxes.create(SPEC), SandboxInfo)


async def test_a_burst_at_a_limit_makes_exactly_as_many_as_are_allowed(tmp_path: Path) -> None:
    capacity = Capacity(max_sandboxes=10, memory_floor_bytes=0, disk_floor_bytes=0)
    async with node_with(tmp_path / "state", capacity, PressurePolicy()) as backend:
        asked = (backend.sandboxes.create(SPEC) for _ in range(100))
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
        made = [each for each in outcomes if isinstance(each, SandboxInfo)]
        assert len(made) == 10
        assert all(isinstance(each, CapacityRejected) for each in outcomes if each not in made)
        assert {await say(backend, info.id, "echo here") for info in made} == {"here"}
        raised = replace(capacity, max_sandboxes=None)
        await backend.node.limit(raised)
        more = await asyncio.gather(*(backend.sandboxes.create(SPEC) for _ in range(100)))
        assert len(more) == 100
