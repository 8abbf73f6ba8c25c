"""Programs inside sandboxes, by sandbox id: environment merged, capability checked, changes told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Self

from firkin.engine.links import Inside
from firkin.engine.node import Node
from firkin.law.capabilities import CapabilityName
from firkin.law.events import ProcessChanged
from firkin.law.ids import ProcessId, SandboxId
from firkin.law.logs import LogLevel, LogSource
from firkin.law.processes import (
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
)

_C = CapabilityName


class LocalProcesses:
    """The `ProcessControl` of the engine."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def run(self, sandbox_id: SandboxId, command: Command) -> CommandOutput:
        inside, command = await self._prepare(sandbox_id, "run a command", _C.PROCESS_RUN, command)
        return await inside.processes.run(command)

    async def start(self, sandbox_id: SandboxId, command: Command) -> ProcessInfo:
        inside, command = await self._prepare(sandbox_id, "start a process", _C.PROCESS_START, command)
        info = await inside.processes.start(command)
        self._started(sandbox_id, info)
        return info

    async def stream(self, sandbox_id: SandboxId, command: Command) -> ProcessStream:
        inside, command = await self._prepare(sandbox_id, "start a process", _C.PROCESS_STREAM, command)
        stream = await inside.processes.stream(command)
        self._started(sandbox_id, stream.info)
        return _ObservedStream(stream, self, sandbox_id)

    async def list(self, sandbox_id: SandboxId) -> Sequence[ProcessInfo]:
        return await (await self._enter(sandbox_id, "list processes", _C.PROCESS_RUN)).processes.list()

    async def connect(self, sandbox_id: SandboxId, selector: ProcessSelector, *, replay: bool = False) -> ProcessStream:
        inside = await self._enter(sandbox_id, "connect to a process", _C.PROCESS_STREAM)
        return await inside.processes.connect(selector, replay=replay)

    async def signal(self, sandbox_id: SandboxId, selector: ProcessSelector, signal: Signal | int) -> None:
        inside = await self._enter(sandbox_id, "signal a process", _C.PROCESS_SIGNAL)
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
            self.ended(sandbox_id, selector.id, output.status)
        return output

    async def lookup_user(self, sandbox_id: SandboxId, name: str | None) -> GuestUser:
        return await (await self._enter(sandbox_id, "look up a user", _C.PROCESS_RUN)).processes.lookup_user(name)

    def ended(self, sandbox_id: SandboxId, process_id: ProcessId, status: CommandStatus) -> None:
        became = ProcessStatus.EXITED if isinstance(status, Exited) else ProcessStatus.SIGNALED
        self._node.events.publish(ProcessChanged(sandbox_id, process_id, became))

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

    def _started(self, sandbox_id: SandboxId, info: ProcessInfo) -> None:
        self._node.events.publish(ProcessChanged(sandbox_id, info.id, ProcessStatus.RUNNING))
        program = info.argv[0][:256] if info.argv else ""
        message = f"process {info.id} started: {program!r}"
        self._node.logs.write(sandbox_id, LogSource.PROCESS, message, LogLevel.DEBUG)


class _ObservedStream:
    """A `ProcessStream` whose end is told to the engine's listeners."""

    def __init__(self, stream: ProcessStream, owner: LocalProcesses, sandbox_id: SandboxId) -> None:
        self._stream = stream
        self._owner = owner
        self._sandbox_id = sandbox_id

    @property
    def info(self) -> ProcessInfo:
        return self._stream.info

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ProcessEvent:
        event = await self._stream.__anext__()
        if isinstance(event, Ended):
            self._owner.ended(self._sandbox_id, self._stream.info.id, event.status)
        return event

    async def aclose(self) -> None:
        await self._stream.aclose()
