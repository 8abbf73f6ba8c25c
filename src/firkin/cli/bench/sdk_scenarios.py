"""What a user of the official SDK waits for. Times are taken in the client, around its own calls."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

from firkin.cli.bench.raw_http import RawConnection, access_token
from firkin.cli.bench.samples import Lifecycle, Series
from firkin.cli.bench.stage import Stage
from firkin.cli.failures import CommandFailure

ECHO = "echo hi"
_ARGV = ["/bin/echo", "hi"]
_LIFE_S = 3600
_WARM_UP = 3


def load_sdk() -> Any:
    """The official package; `CommandFailure` says how to get it."""
    try:
        import e2b
    except ImportError:
        raise CommandFailure("the benchmark drives the official SDK; install it with: pip install e2b") from None
    return e2b


def cold_and_kill(stage: Stage) -> Iterator[Series]:
    """A sandbox from nothing to its first output, and its end as the caller sees it."""
    sdk = load_sdk()
    for _ in range(_WARM_UP):
        _cold(sdk, stage)
    firsts, kills = [], []
    for _ in range(stage.amounts.n):
        first_ms, kill_ms = _cold(sdk, stage)
        firsts.append(first_ms)
        kills.append(kill_ms)
    yield _series(
        stage,
        "start.cold_to_first_stdout_ms",
        firsts,
        Lifecycle.COLD_PREPARED,
        "Sandbox.create, then commands.run('echo hi') to its first on_stdout",
        target="p50 25, p95 45",
    )
    yield _series(stage, "destroy.kill_ms", kills, Lifecycle.CLEANUP, "Sandbox.kill until it returns", target="6")


def _cold(sdk: Any, stage: Stage) -> tuple[float, float]:
    began = time.perf_counter()
    sandbox = sdk.Sandbox.create(template=stage.template, timeout=_LIFE_S)
    try:
        first = _first_stdout(sandbox)
    except BaseException:
        sandbox.kill()
        raise
    killed_from = time.perf_counter()
    sandbox.kill()
    return (first - began) * 1000, (time.perf_counter() - killed_from) * 1000


def _first_stdout(sandbox: Any) -> float:
    """Run the echo; the instant of its first output."""
    seen: list[float] = []
    sandbox.commands.run(ECHO, on_stdout=lambda text: seen.append(time.perf_counter()))
    if not seen:
        raise CommandFailure("the command ended without output")
    return seen[0]


def commands(stage: Stage) -> Iterator[Series]:
    """Commands in a sandbox that is there already: the SDK's, a plain argv over HTTP, and a hundred of them."""
    sandbox = load_sdk().Sandbox.create(template=stage.template, timeout=_LIFE_S)
    try:
        yield from _one_command(stage, sandbox)
        yield _batch(stage, sandbox)
    finally:
        sandbox.kill()


def _one_command(stage: Stage, sandbox: Any) -> Iterator[Series]:
    values = _timed(lambda: sandbox.commands.run(ECHO), stage.amounts.n)
    yield _series(
        stage, "exec.sdk_command_ms", values, Lifecycle.HOT, "commands.run('echo hi') until it returns", target="p50 10"
    )
    token = access_token(stage.address.url, stage.address.api_key, sandbox.sandbox_id)
    with RawConnection(stage.address.url, sandbox.sandbox_id, token, _ARGV) as connection:
        for _ in range(_WARM_UP):
            connection.first_byte_ms()
        firsts = [connection.first_byte_ms() for _ in range(stage.amounts.n)]
    yield _series(
        stage,
        "exec.direct_first_stdout_byte_ms",
        firsts,
        Lifecycle.HOT,
        "Start of /bin/echo over one keep-alive connection, to the first byte of output",
        target="p50 3",
    )


def _timed(act: Callable[[], object], times: int) -> list[float]:
    for _ in range(_WARM_UP):
        act()
    values = []
    for _ in range(times):
        began = time.perf_counter()
        act()
        values.append((time.perf_counter() - began) * 1000)
    return values


def _batch(stage: Stage, sandbox: Any) -> Series:
    count = stage.amounts.batch

    def batch() -> None:
        for _ in range(count):
            sandbox.commands.run(ECHO)

    values = _timed_once(batch)
    return _series(
        stage,
        f"exec.batch_{count}_sdk_sequential_ms",
        values,
        Lifecycle.HOT,
        f"{count} times commands.run('echo hi'), one after the other, a process each",
        target="800",
    )


def _timed_once(act: Callable[[], object]) -> list[float]:
    began = time.perf_counter()
    act()
    return [(time.perf_counter() - began) * 1000]


async def concurrent(stage: Stage) -> list[Series]:
    """Many at once: commands in one sandbox, then creates."""
    sdk = load_sdk()
    found = []
    if stage.amounts.batch:
        found.append(await _concurrent_batch(sdk, stage))
    if stage.amounts.burst:
        found.append(await _burst(sdk, stage))
    return found


async def _concurrent_batch(sdk: Any, stage: Stage) -> Series:
    """Twice as many as one after the other: all that the SDK holds open at once by default."""
    count = 2 * stage.amounts.batch
    sandbox = await sdk.AsyncSandbox.create(template=stage.template, timeout=_LIFE_S)
    try:
        began = time.perf_counter()
        results = await asyncio.gather(*(sandbox.commands.run(ECHO) for _ in range(count)), return_exceptions=True)
        wall = (time.perf_counter() - began) * 1000
    finally:
        await sandbox.kill()
    failed = [result for result in results if isinstance(result, BaseException)]
    return _series(
        stage,
        f"exec.batch_{count}_sdk_concurrent_ms",
        [wall],
        Lifecycle.HOT,
        f"{count} times commands.run('echo hi') at once in one sandbox",
        failures=len(failed),
        note=_first_failure(failed),
    )


async def _burst(sdk: Any, stage: Stage) -> Series:
    count = stage.amounts.burst
    began = time.perf_counter()
    results = await asyncio.gather(
        *(sdk.AsyncSandbox.create(template=stage.template, timeout=_LIFE_S) for _ in range(count)),
        return_exceptions=True,
    )
    wall = (time.perf_counter() - began) * 1000
    made = [result for result in results if not isinstance(result, BaseException)]
    failed = [result for result in results if isinstance(result, BaseException)]
    await asyncio.gather(*(sandbox.kill() for sandbox in made))
    return _series(
        stage,
        f"create.burst_{count}_ms",
        [wall],
        Lifecycle.COLD_PREPARED,
        f"{count} times AsyncSandbox.create at once, until the last has answered",
        target="1200, no failure",
        failures=len(failed),
        note=_first_failure(failed),
    )


def _first_failure(failed: list[BaseException]) -> str:
    return f"first failure: {type(failed[0]).__name__}: {failed[0]}"[:300] if failed else ""


def _series(
    stage: Stage,
    metric: str,
    values: list[float],
    lifecycle: Lifecycle,
    workload: str,
    *,
    target: str = "",
    failures: int = 0,
    note: str = "",
) -> Series:
    return Series(
        metric=metric,
        values=tuple(values),
        unit="ms",
        lifecycle=lifecycle,
        isolation=stage.isolation,
        workload=workload,
        target=target,
        failures=failures,
        note=note,
    )
