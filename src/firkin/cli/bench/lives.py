"""Pauses, snapshots and forks, through the official SDK."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

from firkin.cli.bench.official_sdk import ECHO, first_stdout, load_sdk
from firkin.cli.bench.samples import Lifecycle, Series
from firkin.cli.bench.stage import LIFE_S, Stage

_FORKS = 10
_DIRTY_FILES = 10
_RESUMED = Lifecycle.RESUMED


def lives(stage: Stage) -> Iterator[Series]:
    """How long an owner waits for each."""
    sdk = load_sdk()
    sandbox = sdk.Sandbox.create(**stage.sdk)
    try:
        sandbox.commands.run(ECHO)
        yield from _pauses(stage, sandbox)
        yield _snapshots(stage, sdk, sandbox, "snapshot.clean_ms", "of a sandbox that has written next to nothing")
        yield _forks(stage, sandbox)
        megabytes = stage.amounts.dirty
        if megabytes:
            workload = f"of a sandbox that has just written {megabytes} MB of random bytes"
            yield _snapshots(stage, sdk, sandbox, f"snapshot.{megabytes}_mb_dirty_ms", workload, dirty=megabytes)
    finally:
        sandbox.kill()


def _write(sandbox: Any, megabytes: int) -> None:
    for at in range(_DIRTY_FILES):
        sandbox.files.write(f"/home/user/dirty{at}", os.urandom(megabytes * 1_000_000 // _DIRTY_FILES))


def _pauses(stage: Stage, sandbox: Any) -> Iterator[Series]:
    pauses, resumptions = [], []
    for _ in range(stage.amounts.n):
        began = time.perf_counter()
        sandbox.pause()
        paused = time.perf_counter()
        sandbox.connect(timeout=LIFE_S)
        pauses.append((paused - began) * 1000)
        resumptions.append((first_stdout(sandbox) - paused) * 1000)
    what = "Sandbox.pause() with its memory, until it returns"
    yield stage.series("pause.memory_ms", pauses, _RESUMED, what, events="PauseStart → PauseDone")
    what = "Sandbox.connect() of a paused one, then commands.run('echo hi') to its first output"
    events = "SnapshotRestoreStart → FirstStdoutByte"
    yield stage.series("start.resume_to_first_stdout_ms", resumptions, _RESUMED, what, events=events)


def _snapshots(stage: Stage, sdk: Any, sandbox: Any, metric: str, workload: str, *, dirty: int = 0) -> Series:
    values = []
    for _ in range(stage.amounts.slow):
        if dirty:
            _write(sandbox, dirty)
        began = time.perf_counter()
        snapshot = sandbox.create_snapshot()
        values.append((time.perf_counter() - began) * 1000)
        sdk.Sandbox.delete_snapshot(snapshot.snapshot_id)
    events = "SnapshotStart → SnapshotDone"
    return stage.series(metric, values, _RESUMED, f"Sandbox.create_snapshot() {workload}", events=events)


def _forks(stage: Stage, sandbox: Any) -> Series:
    values, failures = [], 0
    for _ in range(stage.amounts.slow):
        began = time.perf_counter()
        forks = sandbox.fork(count=_FORKS, timeout=LIFE_S)
        values.append((time.perf_counter() - began) * 1000)
        for fork in forks:
            if isinstance(fork, Exception):
                failures += 1
            else:
                fork.kill()
    what = f"Sandbox.fork(count={_FORKS}) of a clean sandbox, until all answer"
    events = "ForkStart → last SandboxCreated"
    return stage.series(f"fork.of_{_FORKS}_clean_ms", values, _RESUMED, what, events=events, failures=failures)
