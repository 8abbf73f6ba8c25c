"""Commands in a sandbox that is there already: the SDK's, a plain argv over HTTP, a hundred of them, much output."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

from firkin.cli.bench.official_sdk import ECHO, WARM_UP, first_failure, first_stdout, load_sdk, timed
from firkin.cli.bench.raw_http import Inside, RawConnection, start_request, with_output
from firkin.cli.bench.samples import Lifecycle, Series
from firkin.cli.bench.stage import Stage
from firkin.cli.failures import CommandFailure

_HOT = Lifecycle.HOT
_SHELL_WITHIN_S = 60.0
_DOWN_FIRST = "ExecRequestSent → FirstStdoutByte"
_WITHOUT_DEVICES = ("memory",)  # systems whose sandboxes have no /dev/zero


def commands(stage: Stage) -> Iterator[Series]:
    sandbox = load_sdk().Sandbox.create(**stage.sdk)
    try:
        inside = Inside(sandbox_id=sandbox.sandbox_id, token=token_of(sandbox))
        yield from _through_sdk(stage, sandbox)
        with RawConnection(stage) as connection:
            yield from _over_http(stage, connection, inside)
            yield from _batches(stage, sandbox, connection, inside)
            if stage.system not in _WITHOUT_DEVICES and stage.amounts.output:
                yield from _output(stage, sandbox, connection, inside)
    finally:
        sandbox.kill()


def token_of(sandbox: Any) -> str:
    """What the data plane wants of a sandbox that the SDK made."""
    return str(getattr(sandbox, "_envd_access_token", None) or "")


def _through_sdk(stage: Stage, sandbox: Any) -> Iterator[Series]:
    values = timed(lambda: sandbox.commands.run(ECHO), stage.amounts.n)
    what = "commands.run('echo hi'), which is bash -l -c, until it returns"
    yield stage.series("exec.sdk_command_ms", values, _HOT, what, events="ExecRequestSent → ProcessExited")
    firsts = []
    for _ in range(stage.amounts.n):
        began = time.perf_counter()
        firsts.append((first_stdout(sandbox) - began) * 1000)
    what = "commands.run('echo hi') to its first on_stdout"
    yield stage.series("exec.first_stdout_byte_ms", firsts, _HOT, what, events=_DOWN_FIRST)


def _over_http(stage: Stage, connection: RawConnection, inside: Inside) -> Iterator[Series]:
    request = start_request(stage, inside)
    for _ in range(WARM_UP):
        connection.ask(request)
    answers = [with_output(connection.ask(request)) for _ in range(stage.amounts.n)]
    what = "Start of /bin/echo over one connection that stays open"
    yield stage.series(
        "exec.direct_command_start_ms",
        [answer.started_ms for answer in answers],
        _HOT,
        f"{what}, until its process has started",
        events="ExecRequestSent → ProcessStarted",
    )
    firsts = [answer.first_ms for answer in answers]
    what = f"{what}, to the first byte of output"
    yield stage.series("exec.direct_first_stdout_byte_ms", firsts, _HOT, what, events=_DOWN_FIRST)


def _batches(stage: Stage, sandbox: Any, connection: RawConnection, inside: Inside) -> Iterator[Series]:
    count, rounds = stage.amounts.batch, stage.amounts.slow
    if not count:
        return
    request = start_request(stage, inside)

    def direct() -> None:
        for _ in range(count):
            with_output(connection.ask(request))

    def through_sdk() -> None:
        for _ in range(count):
            sandbox.commands.run(ECHO)

    events = "first ExecRequestSent → last ProcessExited"
    what = f"{count} times /bin/echo one after the other over one connection, a process each"
    values = timed(direct, rounds, warm_up=0)
    yield stage.series(f"exec.batch_{count}_direct_ms", values, _HOT, what, events=events)
    what = f"{count} times commands.run('echo hi') one after the other, a process each"
    values = timed(through_sdk, min(rounds, 5), warm_up=0)
    yield stage.series(f"exec.batch_{count}_sdk_sequential_ms", values, _HOT, what, events=events)
    what = f"{count} lines to one bash that is kept, each answered before the next, through the SDK"
    values = [_in_one_shell(sandbox, count) for _ in range(rounds)]
    yield stage.series(f"exec.batch_{count}_small_commands_ms", values, _HOT, what, events=events)


def _in_one_shell(sandbox: Any, count: int) -> float:
    """Milliseconds for all of them; the shell's own start is not in it."""
    shell = sandbox.commands.run("bash", background=True, stdin=True, timeout=_SHELL_WITHIN_S)
    try:
        output = (text for text, _, _ in shell if text)
        sandbox.commands.send_stdin(shell.pid, "echo ready\n")
        next(output)
        began = time.perf_counter()
        for number in range(count):
            sandbox.commands.send_stdin(shell.pid, f"echo {number}\n")
            if next(output).strip() != str(number):
                raise CommandFailure("the kept shell answered out of turn")
        return (time.perf_counter() - began) * 1000
    finally:
        shell.kill()


def _output(stage: Stage, sandbox: Any, connection: RawConnection, inside: Inside) -> Iterator[Series]:
    size = stage.amounts.output << 20
    argv = ("head", "-c", str(size), "/dev/zero")
    request = start_request(stage, inside, argv)
    values = []
    for _ in range(3):
        began = time.perf_counter()
        connection.drain(request)
        values.append(size / 1e6 / (time.perf_counter() - began))
    what = f"{stage.amounts.output} MiB of standard output over HTTP, counted as the program wrote it"
    yield stage.series("exec.stdout_mb_per_s", values, _HOT, what, unit="MB/s", events=_DOWN_FIRST)
    values = []
    for _ in range(3):
        began = time.perf_counter()
        sandbox.commands.run(f"head -c {size // 4} /dev/zero | tr '\\0' x", on_stdout=lambda text: None)
        values.append(size / 4 / 1e6 / (time.perf_counter() - began))
    what = f"{stage.amounts.output // 4} MiB of letters through commands.run; the SDK's own reading is in it"
    yield stage.series("exec.stdout_sdk_mb_per_s", values, _HOT, what, unit="MB/s", events=_DOWN_FIRST)


async def at_once(stage: Stage) -> list[Series]:
    """Twice as many as one after the other: all that the SDK holds open at once by default."""
    count = 2 * stage.amounts.batch
    if not count:
        return []
    sandbox = await load_sdk().AsyncSandbox.create(**stage.sdk)
    walls, failed = [], []
    try:
        for _ in range(min(5, stage.amounts.slow)):
            began = time.perf_counter()
            results = await asyncio.gather(*(sandbox.commands.run(ECHO) for _ in range(count)), return_exceptions=True)
            walls.append((time.perf_counter() - began) * 1000)
            failed += [result for result in results if isinstance(result, BaseException)]
    finally:
        await sandbox.kill()
    return [
        stage.series(
            f"exec.batch_{count}_sdk_concurrent_ms",
            walls,
            _HOT,
            f"{count} times commands.run('echo hi') at once in one sandbox",
            events="first ExecRequestSent → last ProcessExited",
            failures=len(failed),
            note=first_failure(failed),
        )
    ]
