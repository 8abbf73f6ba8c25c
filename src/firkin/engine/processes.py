"""Programs inside sandboxes, by sandbox id: environment merged, capability checked, changes told.

A program that was killed is held against the kernel's own count of what it killed
for memory in that sandbox, so that running out of memory is called by its name.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Self

from firkin.engine.links import Inside
from firkin.engine.node import Node
from firkin.engine.program_lines import described
from firkin.law.capabilities import CapabilityName
from firkin.law.errors import FirkinError
from firkin.law.events import ProcessChanged
from firkin.law.ids import ProcessId, SandboxId
from firkin.law.logs import LogLevel, LogSource
from firkin.law.processes import (
    SIGNAL_NUMBERS,
    ById,
    Command,
    CommandOutput,
    CommandStatus,
    Ended,
    Exited,
    GuestUser,
    ProcessEvent,
    ProcessInfo,
    ProcessSelector,
    ProcessStatus,
    ProcessStream,
    PtySize,
    Signal,
    Signaled,
    signal_number,
)
from firkin.law.resources import MIB
from firkin.phases import mark

COUNT_WITHIN_S = 1.0
_C = CapabilityName
_KILLED = SIGNAL_NUMBERS[Signal.KILL]
_KILLED_BELOW_A_SHELL = 128 + _KILLED


class LocalProcesses:
    """The `ProcessControl` of the engine."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def run(self, sandbox_id: SandboxId, command: Command) -> CommandOutput:
        inside, command = await self._prepare(sandbox_id, "run a command", _C.PROCESS_RUN, command)
        began, kills = self._node.clock.monotonic(), await self._known_kills(sandbox_id)
        output = await inside.processes.run(command)
        killed = _may_be_killed(output.status) and await self._count_kills(sandbox_id) > kills
        self._log_end(sandbox_id, "a command", output.status, began, out_of_memory=killed)
        return output

    async def start(self, sandbox_id: SandboxId, command: Command) -> ProcessInfo:
        inside, command = await self._prepare(sandbox_id, "start a process", _C.PROCESS_START, command)
        info = await inside.processes.start(command)
        await self._started(sandbox_id, info)
        return info

    async def stream(self, sandbox_id: SandboxId, command: Command) -> ProcessStream:
        inside, command = await self._prepare(sandbox_id, "start a process", _C.PROCESS_STREAM, command)
        mark("enter")
        stream = await inside.processes.stream(command)
        mark("process start")
        await self._started(sandbox_id, stream.info)
        return _ObservedStream(stream, self, sandbox_id)

    async def list(self, sandbox_id: SandboxId) -> Sequence[ProcessInfo]:
        return await (await self._enter(sandbox_id, "list processes", _C.PROCESS_RUN)).processes.list()

    async def connect(self, sandbox_id: SandboxId, selector: ProcessSelector, *, replay: bool = False) -> ProcessStream:
        inside = await self._enter(sandbox_id, "connect to a process", _C.PROCESS_STREAM)
        stream = await inside.processes.connect(selector, replay=replay)
        return _ObservedStream(stream, self, sandbox_id)

    async def signal(self, sandbox_id: SandboxId, selector: ProcessSelector, signal: Signal | int) -> None:
        inside = await self._enter(sandbox_id, "signal a process", _C.PROCESS_SIGNAL)
        if signal_number(signal) == _KILLED:
            self._node.programs.doom(sandbox_id, selector)
        await inside.processes.signal(selector, signal)

    async def send_input(self, sandbox_id: SandboxId, selector: ProcessSelector, data: bytes) -> None:
        inside = await self._enter(sandbox_id, "send input", _C.PROCESS_STDIN)
        await inside.processes.send_input(selector, data)

    async def close_stdin(self, sandbox_id: SandboxId, selector: ProcessSelector) -> None:
        inside = await self._enter(sandbox_id, "close standard input", _C.PROCESS_STDIN)
        await inside.processes.close_stdin(selector)

    async def resize_pty(self, sandbox_id: SandboxId, selector: ProcessSelector, size: PtySize) -> None:
        inside = await self._enter(sandbox_id, "resize a terminal", _C.PROCESS_PTY)
        await inside.processes.resize_pty(selector, size)

    async def wait(self, sandbox_id: SandboxId, selector: ProcessSelector) -> CommandOutput:
        inside = await self._enter(sandbox_id, "wait for a process", _C.PROCESS_START)
        output = await inside.processes.wait(selector)
        if isinstance(selector, ById):
            await self.ended(sandbox_id, selector.id, Ended(output.status))
        return output

    async def lookup_user(self, sandbox_id: SandboxId, name: str | None) -> GuestUser:
        return await (await self._enter(sandbox_id, "look up a user", _C.PROCESS_RUN)).processes.lookup_user(name)

    async def ended(self, sandbox_id: SandboxId, process_id: ProcessId, end: Ended) -> Ended:
        """Tell of an end that somebody has seen, the first time; the end, with what is known of its reason."""
        program = self._node.programs.get(sandbox_id, process_id)
        if program is None:
            self._publish_end(sandbox_id, process_id, end.status)
            return end
        if not program.told:
            program.told = True  # to one reader alone, however many wait below
            asked_for = end.timed_out or program.doomed
            if _may_be_killed(end.status) and not asked_for:
                program.out_of_memory = await self._count_kills(sandbox_id) > program.oom_kills
            self._publish_end(sandbox_id, process_id, end.status)
            self._log_end(
                sandbox_id,
                f"process {process_id} ({program.name!r})",
                end.status,
                program.began,
                out_of_memory=program.out_of_memory,
                timed_out=end.timed_out,
            )
        return replace(end, out_of_memory=program.out_of_memory)

    def _publish_end(self, sandbox_id: SandboxId, process_id: ProcessId, status: CommandStatus) -> None:
        became = ProcessStatus.EXITED if isinstance(status, Exited) else ProcessStatus.SIGNALED
        self._node.events.publish(ProcessChanged(sandbox_id, process_id, became))

    def _log_end(
        self,
        sandbox_id: SandboxId,
        name: str,
        status: CommandStatus,
        began: float,
        *,
        out_of_memory: bool,
        timed_out: bool = False,
    ) -> None:
        took_s = self._node.clock.monotonic() - began
        why = ", killed at its own deadline" if timed_out else ""
        message = f"{name} ended after {took_s:.3f} s: {described(status)}{why}"
        self._node.logs.write(sandbox_id, LogSource.PROCESS, message)
        resident = self._node.roster.get(sandbox_id)
        if out_of_memory and resident is not None:
            limit = resident.info.resources.memory_bytes // MIB
            told = f"out of memory: the kernel killed {name}, for the sandbox had used all of its {limit} MiB"
            self._node.logs.write(sandbox_id, LogSource.PROCESS, told, LogLevel.WARN)
            self._node.samples.reached_limit(resident)

    async def _known_kills(self, sandbox_id: SandboxId) -> int:
        """The count that was seen last. Only in a sandbox's first moments it must be asked for."""
        known = self._node.programs.oom_kills(sandbox_id)
        return await self._count_kills(sandbox_id) if known is None else known

    async def _count_kills(self, sandbox_id: SandboxId) -> int:
        """How many programs the kernel has killed there for memory; 0 when that cannot be read."""
        resident = self._node.roster.get(sandbox_id)
        if resident is None or resident.instance is None:
            return 0
        try:
            async with asyncio.timeout(COUNT_WITHIN_S):
                count = (await resident.instance.usage()).get("oom_kills", 0)
        except (FirkinError, OSError, TimeoutError):  # it may be ending
            return 0
        self._node.programs.saw_oom_kills(sandbox_id, count)
        return count

    async def _enter(self, sandbox_id: SandboxId, operation: str, *needs: CapabilityName) -> Inside:
        return await self._node.links.enter(sandbox_id, operation, *needs)

    async def _prepare(
        self, sandbox_id: SandboxId, operation: str, verb: CapabilityName, command: Command
    ) -> tuple[Inside, Command]:
        needs = [verb]
        if command.pty is not None:
            needs.append(_C.PROCESS_PTY)
        if command.stdin is not None or command.keep_stdin:
            needs.append(_C.PROCESS_STDIN)
        inside = await self._enter(sandbox_id, operation, *needs)
        return inside, replace(command, env={**inside.env, **command.env}) if inside.env else command

    async def _started(self, sandbox_id: SandboxId, info: ProcessInfo) -> None:
        program = info.argv[0][:256] if info.argv else ""
        await self._known_kills(sandbox_id)
        self._node.programs.began(sandbox_id, info, program)
        self._node.events.publish(ProcessChanged(sandbox_id, info.id, ProcessStatus.RUNNING))
        message = f"process {info.id} started: {program!r}"
        self._node.logs.write(sandbox_id, LogSource.PROCESS, message, LogLevel.DEBUG)


def _may_be_killed(status: CommandStatus) -> bool:
    """By SIGKILL itself, or as a shell tells it of a program of its own."""
    return status in (Signaled(_KILLED), Exited(_KILLED_BELOW_A_SHELL))


class _ObservedStream:
    """A `ProcessStream` whose end is told to the engine's listeners."""

    def __init__(self, stream: ProcessStream, owner: LocalProcesses, sandbox_id: SandboxId) -> None:
        self._stream = stream
        self._owner = owner
        self._sandbox_id = sandbox_id
        self._untold: Ended | None = None

    @property
    def info(self) -> ProcessInfo:
        return self._stream.info

    @property
    def cut_off(self) -> bool:
        return self._stream.cut_off

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ProcessEvent:
        event = self._untold or await self._stream.__anext__()
        if isinstance(event, Ended):
            self._untold = event  # for the next turn, where this one is cancelled
            event = await self._owner.ended(self._sandbox_id, self._stream.info.id, event)
            self._untold = None
        return event

    async def aclose(self) -> None:
        await self._stream.aclose()
