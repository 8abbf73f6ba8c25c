"""Pauses, snapshots and forks, through the official SDK."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

from firkin.cli.bench.samples import Lifecycle, Series
from firkin.cli.bench.sdk_scenarios import ECHO, load_sdk
from firkin.cli.bench.stage import Stage

_LIFE_S = 3600
_FORKS = 10
_DIRTY_FILES = 10
_SLOW = 10  # what takes tenths of a second is done a tenth as often


def lives(stage: Stage) -> Iterator[Series]:
    """How long an owner waits for each."""
    sdk = load_sdk()
    sandbox = sdk.Sandbox.create(template=stage.template, timeout=_LIFE_S)
    try:
        sandbox.commands.run(ECHO)
        yield from _pauses(stage, sandbox)
        yield _snapshots(
            stage, sdk, sandbox, "snapshot.clean_ms", "of a sandbox that has written next to nothing", "60"
        )
        yield _forks(stage, sandbox)
        megabytes = stage.amounts.dirty
        workload = f"of a sandbox that has just written {megabytes} MB of random bytes"
        metric = f"snapshot.{megabytes}_mb_dirty_ms"
        yield _snapshots(stage, sdk, sandbox, metric, workload, "1500", dirty=megabytes)
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
        sandbox.connect(timeout=_LIFE_S)
        seen: list[float] = []
        sandbox.commands.run(ECHO, on_stdout=lambda text, seen=seen: seen.append(time.perf_counter()))
        pauses.append((paused - began) * 1000)
        resumptions.append((seen[0] - paused) * 1000)
    yield _series(stage, "pause.memory_ms", pauses, "Sandbox.pause() until it returns", "10")
    yield _series(
        stage,
        "resume.frozen_to_first_stdout_ms",
        resumptions,
        "Sandbox.connect() of a paused one, then commands.run('echo hi') to its first output",
        "p50 20",
    )


def _snapshots(
    stage: Stage, sdk: Any, sandbox: Any, metric: str, workload: str, target: str, *, dirty: int = 0
) -> Series:
    values = []
    for _ in range(max(1, stage.amounts.n // _SLOW)):
        if dirty:
            _write(sandbox, dirty)
        began = time.perf_counter()
        snapshot = sandbox.create_snapshot()
        values.append((time.perf_counter() - began) * 1000)
        sdk.Sandbox.delete_snapshot(snapshot.snapshot_id)
    return _series(stage, metric, values, f"Sandbox.create_snapshot() {workload}", target)


def _forks(stage: Stage, sandbox: Any) -> Series:
    values, failures = [], 0
    for _ in range(max(1, stage.amounts.n // _SLOW)):
        began = time.perf_counter()
        forks = sandbox.fork(count=_FORKS, timeout=_LIFE_S)
        values.append((time.perf_counter() - began) * 1000)
        for fork in forks:
            if isinstance(fork, Exception):
                failures += 1
            else:
                fork.kill()
    workload = f"Sandbox.fork(count={_FORKS}) of a clean sandbox, until all answer"
    return _series(stage, f"fork.of_{_FORKS}_clean_ms", values, workload, "900", failures=failures)


def _series(stage: Stage, metric: str, values: list[float], workload: str, target: str, *, failures: int = 0) -> Series:
    return Series(
        metric=metric,
        values=tuple(values),
        unit="ms",
        lifecycle=Lifecycle.RESUMED,
        isolation=stage.isolation,
        workload=workload,
        target=target,
        failures=failures,
    )
