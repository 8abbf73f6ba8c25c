"""The live handle of one sandbox."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

from firkin.law.backend import SandboxBackend
from firkin.law.capabilities import CapabilityName
from firkin.law.errors import NotFound
from firkin.law.ids import SandboxId
from firkin.law.logs import LogEntry, LogFilter, LogLevel
from firkin.law.metrics import SandboxUsage
from firkin.law.network import NetworkPolicy
from firkin.law.network_use import SandboxNetwork
from firkin.law.processes import Command, CommandOutput, Signal
from firkin.law.sandboxes import (
    AttachOptions,
    DeleteOptions,
    Graceful,
    KillSignal,
    SandboxDeadline,
    SandboxInfo,
    StopMode,
)
from firkin.law.snapshots import PausedSandbox, PauseOptions, ResumeOptions, SnapshotOptions, SnapshotRef
from firkin.lifetimes import finish
from firkin.runtime.files import SandboxFiles
from firkin.runtime.ports import SandboxPorts
from firkin.runtime.processes import SandboxProcesses
from firkin.runtime.required import required
from firkin.runtime.shell import Shell, ShellOptions
from firkin.runtime.shell_pool import ShellPool

LEAVE_WITHIN_S = 60.0


class Sandbox:
    """One sandbox. As a block (``async with``) it is killed and deleted at the end; alone it lives on."""

    def __init__(self, backend: SandboxBackend, info: SandboxInfo) -> None:
        self._backend = backend
        self._info = info
        self.process = SandboxProcesses(backend, info.id)
        self.fs = SandboxFiles(backend, info.id, default_user=info.default_user)
        self.ports = SandboxPorts(backend, info.id)

    @property
    def id(self) -> SandboxId:
        return self._info.id

    def info(self) -> SandboxInfo:
        """The record as last seen; `refresh` looks again."""
        return self._info

    async def refresh(self) -> SandboxInfo:
        self._info = await self._backend.sandboxes.inspect(self.id)
        return self._info

    async def ping(self) -> SandboxInfo:
        """Return once its agent has answered; `WrongState` when it does not run."""
        self._info = await self._backend.sandboxes.attach(self.id, AttachOptions(require_running=True))
        return self._info

    async def exec(self, command: Command | str) -> CommandOutput:
        """Run to the end and collect what it says. Text is for a shell."""
        return await self.process.run(command)

    async def stop(self, mode: StopMode | None = None) -> SandboxInfo:
        self._info = await self._backend.sandboxes.stop(self.id, mode or Graceful())
        return self._info

    async def kill(self, signal: KillSignal = Signal.KILL) -> SandboxInfo:
        """End it at once; `stop` lets its programs finish."""
        self._info = await self._backend.sandboxes.kill(self.id, signal)
        return self._info

    async def delete(self, *, force: bool = False, delete_snapshots: bool = False) -> None:
        options = DeleteOptions(force=force, delete_snapshots=delete_snapshots)
        await self._backend.sandboxes.delete(self.id, options)

    async def update_deadline(self, deadline: SandboxDeadline) -> SandboxInfo:
        self._info = await self._backend.sandboxes.update_deadline(self.id, deadline)
        return self._info

    async def update_network(self, policy: NetworkPolicy) -> SandboxInfo:
        """Put another policy in force, also for connections that are open."""
        self._info = await self._backend.sandboxes.update_network(self.id, policy)
        return self._info

    async def network(self) -> SandboxNetwork:
        """Its policy, and what became of its traffic so far."""
        return await self._backend.sandboxes.network(self.id)

    async def snapshot(self, name: str | None = None) -> SnapshotRef:
        return await self._backend.snapshots.capture(self.id, SnapshotOptions(name=name))

    async def pause(self, *, keep_memory: bool = True) -> PausedSandbox:
        control = await required(self._backend, self._backend.pauses, "pause", CapabilityName.PAUSE_CAPTURE)
        return await control.pause(self.id, PauseOptions(keep_memory=keep_memory))

    async def resume(self, deadline: SandboxDeadline | None = None) -> SandboxInfo:
        """Run on from where it was paused; `deadline` counts from now."""
        control = await required(self._backend, self._backend.pauses, "resume", CapabilityName.PAUSE_RESUME)
        self._info = await control.resume(self.id, ResumeOptions(deadline=deadline))
        return self._info

    async def logs(self, *, level: LogLevel = LogLevel.TRACE, limit: int = 1000) -> Sequence[LogEntry]:
        control = await required(self._backend, self._backend.logs, "read logs", CapabilityName.EVENTS_SUBSCRIBE)
        return await control.list(LogFilter(sandbox_id=self.id, level=level, limit=limit))

    async def metrics(self) -> SandboxUsage:
        """A fresh sample of what it uses."""
        control = await required(self._backend, self._backend.metrics, "measure", CapabilityName.METRICS_GUEST)
        return await control.usage(self.id)

    async def shell(self, options: ShellOptions | None = None) -> Shell:
        """One shell that keeps its directory and variables from command to command."""
        return await Shell.open(self.process, options or ShellOptions())

    async def shell_pool(self, size: int, options: ShellOptions | None = None) -> ShellPool:
        return await ShellPool.open(self.process, size, options or ShellOptions())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with suppress(NotFound):  # its deadline or another caller was first
            await finish(self.delete(force=True), within_s=LEAVE_WITHIN_S)
