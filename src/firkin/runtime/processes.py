"""Programs in one sandbox, and the handle of one of them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from firkin.law.backend import ProcessControl, SandboxBackend
from firkin.law.capabilities import CapabilityName
from firkin.law.ids import ProcessId, ProcessTag, SandboxId
from firkin.law.processes import (
    ById,
    ByTag,
    Command,
    CommandOutput,
    CommandStatus,
    Ended,
    ProcessEvent,
    ProcessInfo,
    ProcessSelector,
    ProcessStream,
    PtyOutput,
    PtySize,
    Signal,
    Stderr,
    Stdout,
)
from firkin.runtime.collected import Collected
from firkin.runtime.required import required

Selecting = ProcessSelector | ProcessId | ProcessTag | str | int


def as_command(command: Command | str) -> Command:
    """Text is for a shell."""
    return Command.shell(command) if isinstance(command, str) else command


def as_selector(which: Selecting) -> ProcessSelector:
    """A number is a process id; any other text is a tag."""
    if isinstance(which, ById | ByTag):
        return which
    if isinstance(which, ProcessTag):
        return ByTag(which)
    text = str(which)
    return ById(ProcessId(text)) if text.isdecimal() else ByTag(ProcessTag(text))


class SandboxProcesses:
    """The programs of one sandbox."""

    def __init__(self, backend: SandboxBackend, sandbox_id: SandboxId) -> None:
        self._backend = backend
        self._sandbox_id = sandbox_id

    async def run(self, command: Command | str) -> CommandOutput:
        """Run to the end and collect what it says."""
        control = await self._control("run a command", CapabilityName.PROCESS_RUN)
        return await control.run(self._sandbox_id, as_command(command))

    async def start(self, command: Command | str) -> Process:
        """Start detached: it runs whether or not anybody listens."""
        control = await self._control("start a process", CapabilityName.PROCESS_START)
        return Process(control, self._sandbox_id, await control.start(self._sandbox_id, as_command(command)))

    async def stream(self, command: Command | str) -> Process:
        """Start and listen from the first byte on. Not reading holds the program up."""
        control = await self._control("stream a process", CapabilityName.PROCESS_STREAM)
        stream = await control.stream(self._sandbox_id, as_command(command))
        return Process(control, self._sandbox_id, stream.info, stream)

    async def connect(self, which: Selecting, *, replay: bool = False) -> Process:
        """Listen to a process that runs; with `replay`, to what was kept of its output first."""
        control = await self._control("connect to a process", CapabilityName.PROCESS_STREAM)
        stream = await control.connect(self._sandbox_id, as_selector(which), replay=replay)
        return Process(control, self._sandbox_id, stream.info, stream)

    async def list(self) -> Sequence[ProcessInfo]:
        return await (await self._control("list processes", CapabilityName.PROCESS_RUN)).list(self._sandbox_id)

    async def signal(self, which: Selecting, signal: Signal | int) -> None:
        control = await self._control("signal a process", CapabilityName.PROCESS_SIGNAL)
        await control.signal(self._sandbox_id, as_selector(which), signal)

    async def send_input(self, which: Selecting, data: bytes | str) -> None:
        control = await self._control("send input", CapabilityName.PROCESS_STDIN)
        await control.send_input(self._sandbox_id, as_selector(which), _octets(data))

    async def _control(self, operation: str, capability: CapabilityName) -> ProcessControl:
        return await required(self._backend, self._backend.processes, operation, capability)


class Process:
    """One program. Iterate it for its events; leaving its block only stops listening.

    Several tasks may use it: all that wait are given the same, and what is read goes to one of those who read.
    """

    def __init__(
        self, control: ProcessControl, sandbox_id: SandboxId, info: ProcessInfo, stream: ProcessStream | None = None
    ) -> None:
        self._control = control
        self._sandbox_id = sandbox_id
        self._info = info
        self._selector = ById(info.id)
        self._stream = stream
        self._reading = asyncio.Lock()
        self._waiting = asyncio.Lock()
        self._stdout, self._stderr = Collected(), Collected()  # by `wait`: what a cancelled one read is the next one's
        self._end: CommandOutput | None = None
        self._ended = False

    @property
    def id(self) -> ProcessId:
        return self._info.id

    @property
    def info(self) -> ProcessInfo:
        """As it was when the handle was made."""
        return self._info

    @property
    def ended(self) -> bool:
        """Whether this handle has seen its end."""
        return self._ended or self._end is not None

    @property
    def cut_off(self) -> bool:
        """Whether a pause or a lost connection ended the listening. It may run on; `connect` finds it."""
        return self._stream is not None and self._stream.cut_off

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ProcessEvent:
        """The next event; a detached process is connected to first, with what was kept of its output."""
        async with self._reading:
            if self._stream is None:
                self._stream = await self._control.connect(self._sandbox_id, self._selector, replay=True)
            event = await self._stream.__anext__()
        self._ended = self._ended or isinstance(event, Ended)
        return event

    async def send_input(self, data: bytes | str) -> None:
        await self._control.send_input(self._sandbox_id, self._selector, _octets(data))

    async def close_stdin(self) -> None:
        await self._control.close_stdin(self._sandbox_id, self._selector)

    async def signal(self, signal: Signal | int) -> None:
        await self._control.signal(self._sandbox_id, self._selector, signal)

    async def kill(self) -> None:
        await self.signal(Signal.KILL)

    async def resize(self, size: PtySize) -> None:
        await self._control.resize_pty(self._sandbox_id, self._selector, size)

    async def wait(self) -> CommandOutput:
        """Its end. A handle that listens reads on to it and returns what it read; again returns the same.

        A wait that is cancelled loses nothing: the next one goes on where it was.
        """
        async with self._waiting:
            if self._end is None:
                self._end = await self._listen() if self._stream else await self._wait()
            return self._end

    async def aclose(self) -> None:
        """Stop listening; the program goes on. Idempotent."""
        stream, self._stream = self._stream, None
        if stream is not None:
            await stream.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _wait(self) -> CommandOutput:
        return await self._control.wait(self._sandbox_id, self._selector)

    async def _listen(self) -> CommandOutput:
        async for event in self:
            match event:
                case Stdout(data) | PtyOutput(data):
                    self._stdout.add(data)
                case Stderr(data):
                    self._stderr.add(data)
                case Ended(status=status):
                    return self._collected(status)
        return await self._wait()

    def _collected(self, status: CommandStatus) -> CommandOutput:
        stdout, stderr = self._stdout, self._stderr
        truncated = stdout.truncated or stderr.truncated
        return CommandOutput(status=status, stdout=stdout.value(), stderr=stderr.value(), truncated=truncated)


def _octets(data: bytes | str) -> bytes:
    return data.encode() if isinstance(data, str) else data
