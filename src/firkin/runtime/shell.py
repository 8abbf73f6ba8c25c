"""A retained shell: one process, many commands, its directory and variables kept between them.

Output comes as it is written. A command that takes too long, or whose caller
goes away, is ended together with the shell that ran it, because the rest of its
text must not run; the next command gets a fresh shell. So does the one after a
command that ended the shell itself, such as ``exit``.

A shell that nobody used goes on after a pause of the sandbox, where the pause
kept the memory. A command that a pause cut off is ended with its shell, and so
is told; a shell that the pause ended is told by the first command after it.

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

from firkin.law.errors import (
    FirkinError,
    InvalidReason,
    InvalidSpec,
    NotFound,
    ProcessFailure,
    ProcessFault,
    ResourceKind,
    SandboxUnavailable,
)
from firkin.law.ids import ProcessTag
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
_ANEW = "the next command has a new shell, without the directory and the variables of this one"
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
        self._tag = _fresh_tag()
        self._process: Process | None = None
        self._spoilt = False  # a pause came in the middle of a command: what is left of it must not run
        self._closed = False

    @classmethod
    async def open(cls, processes: SandboxProcesses, options: ShellOptions) -> Shell:
        shell = cls(processes, options)
        await shell._running()
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
            except SandboxUnavailable as error:
                raise _cut_off(error) from error
            finally:
                if process.cut_off:
                    self._spoilt = not over
                elif process.ended or not over:
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
        if self._process is not None and self._process.cut_off:
            await self._listen_again()
        if self._process is None:
            self._tag = _fresh_tag()
            self._process = await self._processes.stream(replace(self._options.command(), tag=self._tag))
        return self._process

    async def _listen_again(self) -> None:
        """Find the shell that a pause cut off. None is left of one that was in the middle of a command."""
        spoilt = self._spoilt
        try:
            found = await self._processes.connect(self._tag)
        except NotFound as error:
            if error.resource is not ResourceKind.PROCESS:
                raise
            self._process, self._spoilt = None, False
            if spoilt:
                return
            detail = f"its shell ended while the sandbox was paused; {_ANEW}"
            raise ProcessFailure("run in a shell", ProcessFault.SHELL_CLOSED, detail) from None
        self._process, self._spoilt = found, False
        if spoilt:
            self._process = None
            await finish(self._end(found), within_s=END_WITHIN_S)

    async def _end(self, process: Process) -> None:
        if process.cut_off:
            try:
                process = await self._processes.connect(self._tag)
            except FirkinError:
                return
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


def _fresh_tag() -> ProcessTag:
    """What a shell is found again by: its number may be another program's after a pause."""
    return ProcessTag(f"shell-{secrets.token_hex(8)}")


def _cut_off(error: SandboxUnavailable) -> SandboxUnavailable:
    if not error.paused:
        return error
    detail = f"the command was under way and is ended; {_ANEW}"
    return SandboxUnavailable("run in a shell", error.sandbox_id, detail, paused=True)


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
