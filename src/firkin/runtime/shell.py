"""A retained shell: one process, many commands, its directory and variables kept between them.

Output comes as it is written. A command that takes too long, or whose caller
goes away, is ended together with the shell that ran it, because the rest of its
text must not run; the next command gets a fresh shell. So does the one after a
command that ended the shell itself, such as ``exit``.

A command that redirects the shell's own output (``exec >file``) hides its end;
give such a command a timeout.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Self

from firkin.law.errors import FirkinError, InvalidReason, InvalidSpec, ProcessFailure, ProcessFault
from firkin.law.processes import (
    Command,
    CommandOutput,
    CommandStatus,
    Ended,
    Exited,
    ProcessEvent,
    Signal,
    Stderr,
    Stdout,
    check_environment,
    check_user,
)
from firkin.lifetimes import finish
from firkin.runtime.collected import Collected
from firkin.runtime.processes import Process, SandboxProcesses, as_command
from firkin.runtime.shell_protocol import MarkerReader, script, text_of

END_WITHIN_S = 10.0
_BASH_OR_SH = "if command -v bash >/dev/null 2>&1; then exec bash --noprofile --norc; else exec sh; fi"

# Ends what a killed shell leaves behind: every process of its session, looking again until none is left (a killed
# process is there until it has ended, and one that was just starting appears late). In POSIX sh: the image may have
# no ps.
_SWEEP = """session=$1; round=0; while [ $round -lt 200 ]; do round=$((round + 1)); left=
for stat in /proc/[0-9]*/stat; do
read -r line < "$stat" || continue; pid=${line%% *}; set -- ${line##*) }
[ "$4" = "$session" ] && [ "$1" != Z ] && kill -9 "$pid" && left=1; done 2>/dev/null
[ "$left" ] || break; done; true"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShellOptions:
    """`program` with `args` must read commands from standard input; None means bash, or sh where there is none."""

    program: str | None = None
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    user: str | None = None
    cwd: str | None = None

    def __post_init__(self) -> None:
        check_environment(self.env)
        check_user("open a shell", self.user)
        if self.program is None and self.args:
            raise InvalidSpec("open a shell", InvalidReason.INVALID_COMMAND, "arguments need a program")

    def command(self) -> Command:
        words = ("/bin/sh", "-c", _BASH_OR_SH) if self.program is None else (self.program, *self.args)
        plain = Command.argv(*words)
        return replace(plain, env=self.env, user=self.user, cwd=self.cwd, keep_stdin=True)


class Shell:
    """One command at a time; others wait their turn."""

    def __init__(self, processes: SandboxProcesses, options: ShellOptions) -> None:
        self._processes = processes
        self._options = options
        self._turn = asyncio.Lock()
        self._process: Process | None = None
        self._closed = False

    @classmethod
    async def open(cls, processes: SandboxProcesses, options: ShellOptions) -> Shell:
        shell = cls(processes, options)
        shell._process = await processes.stream(options.command())
        return shell

    @property
    def closed(self) -> bool:
        return self._closed

    async def run(self, command: Command | str) -> CommandOutput:
        """Run and collect at most 16 MiB of each output. `ProcessFailure` (`TIMED_OUT`) after its `timeout_s`."""
        stdout, stderr = Collected(), Collected()
        status: CommandStatus = Exited(0)
        async with aclosing(self.stream(command)) as events:
            async for event in events:
                if isinstance(event, Stdout):
                    stdout.add(event.data)
                elif isinstance(event, Stderr):
                    stderr.add(event.data)
                elif isinstance(event, Ended):
                    status = event.status
        truncated = stdout.truncated or stderr.truncated
        return CommandOutput(status=status, stdout=stdout.value(), stderr=stderr.value(), truncated=truncated)

    async def stream(self, command: Command | str) -> AsyncGenerator[ProcessEvent, None]:
        """Output as it comes, then `Ended`. Close it to end the command early."""
        wanted = as_command(command)
        _check(wanted)
        nonce = secrets.token_hex(16)
        line = script(text_of(wanted.mode), nonce, cwd=wanted.cwd, env=wanted.env)
        until = None if wanted.timeout_s is None else asyncio.get_running_loop().time() + wanted.timeout_s
        async with self._turn:
            process = await self._running()
            over = False
            try:
                await process.send_input(line)
                async for event in _events(process, nonce, until):
                    over = isinstance(event, Ended)
                    yield event
            except TimeoutError:
                raise ProcessFailure(
                    "run in a shell",
                    ProcessFault.TIMED_OUT,
                    f"the command did not end within {wanted.timeout_s:g} s; its shell was replaced",
                    process_id=process.id,
                ) from None
            finally:
                if process.ended or not over:
                    self._process = None
                    await finish(self._end(process), within_s=END_WITHIN_S)

    async def interrupt(self) -> None:
        """End the command that runs now, as if its time were up. Nothing when none runs."""
        process = self._process
        if self._turn.locked() and process is not None:
            await self._kill(process)

    async def close(self) -> None:
        """End the shell and what it runs. Idempotent."""
        self._closed = True
        process, self._process = self._process, None
        if process is not None:
            await finish(self._end(process), within_s=END_WITHIN_S)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def _running(self) -> Process:
        if self._closed:
            raise ProcessFailure("run in a shell", ProcessFault.SHELL_CLOSED, "the shell has been closed")
        if self._process is None:
            self._process = await self._processes.stream(self._options.command())
        return self._process

    async def _end(self, process: Process) -> None:
        await self._kill(process)
        with suppress(FirkinError):
            await process.aclose()

    async def _kill(self, process: Process) -> None:
        """The shell first, so that it starts nothing more, then whatever it had started."""
        with suppress(FirkinError):  # it may have ended already, or the whole sandbox has
            await process.signal(Signal.KILL)
        with suppress(FirkinError):
            sweep = Command.argv("/bin/sh", "-c", _SWEEP, "sweep", process.id)
            await self._processes.run(replace(sweep, user="root", timeout_s=END_WITHIN_S / 2))


def _check(command: Command) -> None:
    """What cannot be had in a shell that runs already is refused."""
    refused = {
        "a terminal": command.pty is not None,
        "standard input": command.stdin is not None or command.keep_stdin,
        "a user of its own": command.user is not None,
        "a tag": command.tag is not None,
    }
    for wish, wished in refused.items():
        if wished:
            raise InvalidSpec(
                "run in a shell", InvalidReason.INVALID_COMMAND, f"a command in a retained shell cannot have {wish}"
            )


async def _events(process: Process, nonce: str, until: float | None) -> AsyncGenerator[ProcessEvent, None]:
    """The events of one command; TimeoutError once `until` has passed."""
    stdout, stderr = MarkerReader(nonce), MarkerReader(nonce)
    while stdout.status is None or stderr.status is None:
        async with asyncio.timeout_at(until):
            event = await _next(process)
        if isinstance(event, Stdout):
            if data := stdout.feed(event.data):
                yield Stdout(data)
        elif isinstance(event, Stderr):
            if data := stderr.feed(event.data):
                yield Stderr(data)
        elif isinstance(event, Ended) or event is None:
            for last in _remains(stdout, stderr):
                yield last
            yield Ended(event.status if event else Exited(0))
            return
    yield Ended(Exited(stdout.status))


def _remains(stdout: MarkerReader, stderr: MarkerReader) -> list[ProcessEvent]:
    """What the readers held back when the shell itself has ended."""
    events: list[ProcessEvent] = []
    if data := stdout.rest():
        events.append(Stdout(data))
    if data := stderr.rest():
        events.append(Stderr(data))
    return events


async def _next(process: Process) -> ProcessEvent | None:
    try:
        return await anext(process)
    except StopAsyncIteration:
        return None
