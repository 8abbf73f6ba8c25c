"""From nothing to a sandbox's first output, and its end as the caller sees it. Times are taken in the client."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

from firkin.cli.bench.official_sdk import WARM_UP, first_failure, first_stdout, load_sdk
from firkin.cli.bench.raw_http import RawConnection, start_request, with_output
from firkin.cli.bench.samples import Lifecycle, Series
from firkin.cli.bench.stage import Stage

_ROUNDS = 5  # bursts, where there is time for more than one
_COLD = Lifecycle.COLD_PREPARED


def starts(stage: Stage) -> Iterator[Series]:
    yield from _through_sdk(stage)
    yield _over_http(stage)


def _through_sdk(stage: Stage) -> Iterator[Series]:
    sdk = load_sdk()
    for _ in range(WARM_UP):
        cold(sdk, stage)
    found = [cold(sdk, stage) for _ in range(stage.amounts.n)]
    what = "Sandbox.create, then commands.run('echo hi') to its first on_stdout"
    yield stage.series(
        "start.cold_to_first_stdout_ms",
        [first for first, _ in found],
        _COLD,
        what,
        events="RequestStart → FirstStdoutByte",
    )
    yield stage.series(
        "destroy.kill_ms",
        [kill for _, kill in found],
        Lifecycle.CLEANUP,
        "Sandbox.kill until it returns",
        events="CleanupStart → CleanupAnswered",
    )


def cold(sdk: Any, stage: Stage) -> tuple[float, float]:
    """Milliseconds to the first output, and of the kill."""
    began = time.perf_counter()
    sandbox = sdk.Sandbox.create(**stage.sdk)
    try:
        first = first_stdout(sandbox)
    except BaseException:
        sandbox.kill()
        raise
    killed_from = time.perf_counter()
    sandbox.kill()
    return (first - began) * 1000, (time.perf_counter() - killed_from) * 1000


def _over_http(stage: Stage) -> Series:
    with RawConnection(stage) as connection:
        values = [direct(stage, connection) for _ in range(stage.amounts.n + WARM_UP)][WARM_UP:]
    return stage.series(
        "start.direct_cold_to_first_stdout_ms",
        values,
        _COLD,
        "POST /sandboxes, then Start of /bin/echo, over one connection, to its first byte of output",
        events="RequestStart → FirstStdoutByte",
    )


def direct(stage: Stage, connection: RawConnection) -> float:
    """Create over plain HTTP, run a plain argv; milliseconds to its first byte. The sandbox is killed."""
    began = time.perf_counter()
    inside = connection.create()
    try:
        so_far = (time.perf_counter() - began) * 1000
        return so_far + with_output(connection.ask(start_request(stage, inside))).first_ms
    finally:
        connection.kill(inside)


async def bursts(stage: Stage) -> list[Series]:
    """Creates at once, until the last has answered."""
    count = stage.amounts.burst
    if not count:
        return []
    rounds = min(_ROUNDS, stage.amounts.slow)
    results = [await _burst(stage, count) for _ in range(rounds)]
    failed = [failure for _, failures in results for failure in failures]
    walls = stage.series(
        f"create.burst_{count}_ms",
        [wall for wall, _ in results],
        _COLD,
        f"{count} times AsyncSandbox.create at once, until the last has answered",
        events="first RequestStart → last SandboxCreated",
        failures=len(failed),
        note=first_failure(failed),
    )
    rate = stage.series(
        "reliability.unknown_failure_rate",
        [100 * len(failed) / (count * rounds)],
        _COLD,
        f"of {count * rounds} creates in bursts, in per cent",
        unit="%",
        events="RequestStart → SandboxCreated",
    )
    return [walls, rate]


async def _burst(stage: Stage, count: int) -> tuple[float, list[BaseException]]:
    sdk = load_sdk()
    began = time.perf_counter()
    results = await asyncio.gather(
        *(sdk.AsyncSandbox.create(**stage.sdk) for _ in range(count)), return_exceptions=True
    )
    wall = (time.perf_counter() - began) * 1000
    living = [result for result in results if not isinstance(result, BaseException)]
    await asyncio.gather(*(sandbox.kill() for sandbox in living))
    return wall, [result for result in results if isinstance(result, BaseException)]
