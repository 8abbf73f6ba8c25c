"""The seam that callers see: `Runtime`, the E2B server and the command line know nothing below it.

A control that a backend does not have is None there, and its capabilities are
reported unsupported: presence and report must agree.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from firkin.law.build_steps import BuildReport
from firkin.law.builds import BuildControl
from firkin.law.capabilities import Capabilities
from firkin.law.errors import FirkinError
from firkin.law.events import EventFilter, EventStream, JournalQuery, LifecycleEntry
from firkin.law.files import (
    CopyOptions,
    FileEntry,
    FileEventStream,
    ListOptions,
    ReadOptions,
    SandboxPath,
    WatchOptions,
    WriteOptions,
)
from firkin.law.ids import BackendName, SandboxId, SnapshotId, TemplateId, WarmPoolKey
from firkin.law.isolation import Isolation, IsolationReport
from firkin.law.logs import LogEntry, LogFilter, LogStream
from firkin.law.metrics import Metric, MetricFilter, SandboxUsage
from firkin.law.network import NetworkPolicy
from firkin.law.network_use import SandboxNetwork
from firkin.law.node import NodeControl
from firkin.law.policies import Policies
from firkin.law.ports import ByteChannel, DomainProxy, DomainProxySpec, Port, PortBinding, PortExposure
from firkin.law.processes import (
    Command,
    CommandOutput,
    GuestUser,
    ProcessInfo,
    ProcessSelector,
    ProcessStream,
    PtySize,
    Signal,
)
from firkin.law.sandboxes import (
    AttachOptions,
    DeleteOptions,
    KillSignal,
    SandboxDeadline,
    SandboxFilter,
    SandboxHistory,
    SandboxInfo,
    SandboxSpec,
    StopMode,
)
from firkin.law.secrets import SecretControl
from firkin.law.snapshots import (
    ForkOptions,
    PausedSandbox,
    PauseOptions,
    RestoreOptions,
    ResumeOptions,
    SnapshotArchive,
    SnapshotFilter,
    SnapshotInfo,
    SnapshotKind,
    SnapshotOptions,
    SnapshotRef,
)
from firkin.law.templates import PreparedTemplate, TemplateInfo, TemplateSpec
from firkin.law.volumes import VolumeControl
from firkin.law.warm_pool import (
    WarmLease,
    WarmLeasePolicy,
    WarmMaintainReport,
    WarmPoolSpec,
    WarmPoolStatus,
    WarmPoolTarget,
)
from firkin.law.webhooks import Webhook, WebhookSpec


@dataclass(frozen=True, slots=True)
class BackendInfo:
    name: BackendName
    version: str = ""
    driver: str = ""


@dataclass(frozen=True, slots=True)
class Preflight:
    """`ready` False stops a start; `reasons` say why, one sentence each, with the mending command."""

    ready: bool
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TierStatus:
    """What one tier is on this machine. `isolation` None: the server's one driver, which is no tier.

    A tier that is not ready has no capabilities, and says so with the preflight's reasons.
    `captures` is the kind of its snapshots and forks.
    """

    isolation: Isolation | None
    driver: str
    preflight: Preflight
    capabilities: Capabilities
    is_default: bool = False
    mounts_volumes: bool = False
    has_gateways: bool = False
    captures: SnapshotKind = SnapshotKind.FILESYSTEM


class TemplateControl(Protocol):
    async def prepare(self, spec: TemplateSpec, report: BuildReport | None = None) -> PreparedTemplate:
        """Prepare, or return what is already prepared for the same spec. `TemplatePrepareFailure` otherwise.

        `report` is told what goes on, line by line. Whoever prepares and is cancelled
        cancels the preparation, unless another caller waits for the same.
        """
        ...

    async def get(self, template_id: TemplateId) -> TemplateInfo: ...

    async def list(self) -> Sequence[TemplateInfo]: ...

    async def delete(self, template_id: TemplateId) -> None:
        """Raises `NotFound`; `WrongState` while a sandbox uses it."""
        ...

    async def prune(self) -> int:
        """Remove at once the files that no template, snapshot or sandbox needs. Returns how many layers those were."""
        ...


class SandboxControl(Protocol):
    async def create(self, spec: SandboxSpec) -> SandboxInfo:
        """A running sandbox whose agent has answered, or an error and no trace."""
        ...

    async def attach(self, sandbox_id: SandboxId, options: AttachOptions) -> SandboxInfo:
        """The record, after the agent has answered; `WrongState` if `require_running` and it is not."""
        ...

    async def inspect(self, sandbox_id: SandboxId) -> SandboxInfo:
        """The record. `NotFound` for an unknown or deleted sandbox; its detail says how it ended."""
        ...

    async def list(self, filter: SandboxFilter) -> Sequence[SandboxInfo]:
        """Newest first."""
        ...

    async def stop(self, sandbox_id: SandboxId, mode: StopMode) -> SandboxInfo: ...

    async def kill(self, sandbox_id: SandboxId, signal: KillSignal) -> SandboxInfo:
        """`KILL` ends it at once; another signal is sent to every process first, with 2 s to obey.

        Handles and clients kill with `KILL` unless told otherwise, since a kill means at
        once to those who ask for it (E2B's does too); the gentle end is `stop`.
        """
        ...

    async def delete(self, sandbox_id: SandboxId, options: DeleteOptions) -> None: ...

    async def update_deadline(self, sandbox_id: SandboxId, deadline: SandboxDeadline) -> SandboxInfo: ...

    async def update_network(self, sandbox_id: SandboxId, policy: NetworkPolicy) -> SandboxInfo:
        """Put `policy` in force in place of the one before, also for connections that are open; running or paused.

        `WrongState` otherwise. When it could not be put in force the sandbox reaches
        nothing from then on, and the call fails with `BackendFailure`.
        """
        ...

    async def network(self, sandbox_id: SandboxId) -> SandboxNetwork:
        """Its policy, and what became of its traffic so far."""
        ...

    async def isolation(self, sandbox_id: SandboxId) -> IsolationReport:
        """What holds it in, read from the live system. `WrongState` for one that does not live: nothing holds it."""
        ...

    async def history(self, sandbox_id: SandboxId) -> SandboxHistory:
        """What became of it, also after its end for as long as the operator wants ends remembered. `NotFound`."""
        ...


class ProcessControl(Protocol):
    async def run(self, sandbox_id: SandboxId, command: Command) -> CommandOutput:
        """Start, collect at most 16 MiB of each output, wait for the end."""
        ...

    async def start(self, sandbox_id: SandboxId, command: Command) -> ProcessInfo:
        """Start detached; its latest output is kept for `wait` and `connect`."""
        ...

    async def stream(self, sandbox_id: SandboxId, command: Command) -> ProcessStream: ...

    async def list(self, sandbox_id: SandboxId) -> Sequence[ProcessInfo]:
        """Those running, started through Firkin."""
        ...

    async def connect(self, sandbox_id: SandboxId, selector: ProcessSelector, *, replay: bool = False) -> ProcessStream:
        """New events of a process; with `replay`, its retained output (the last 256 KiB) first."""
        ...

    async def signal(self, sandbox_id: SandboxId, selector: ProcessSelector, signal: Signal | int) -> None: ...

    async def send_input(self, sandbox_id: SandboxId, selector: ProcessSelector, data: bytes) -> None:
        """Returns when all of `data` is in the pipe or terminal."""
        ...

    async def close_stdin(self, sandbox_id: SandboxId, selector: ProcessSelector) -> None: ...

    async def resize_pty(self, sandbox_id: SandboxId, selector: ProcessSelector, size: PtySize) -> None: ...

    async def wait(self, sandbox_id: SandboxId, selector: ProcessSelector) -> CommandOutput:
        """Wait for the end. Output is what was retained."""
        ...

    async def lookup_user(self, sandbox_id: SandboxId, name: str | None) -> GuestUser:
        """The account of that name, or the default user; `NotFound` (`USER`) otherwise."""
        ...


class FilesystemControl(Protocol):
    async def stat(self, sandbox_id: SandboxId, path: SandboxPath) -> FileEntry: ...

    async def list(self, sandbox_id: SandboxId, path: SandboxPath, options: ListOptions) -> Sequence[FileEntry]:
        """Depth first in name order. A symlink given as `path` is followed."""
        ...

    async def open_read(
        self, sandbox_id: SandboxId, path: SandboxPath, options: ReadOptions
    ) -> tuple[FileEntry, AsyncIterator[bytes]]:
        """The entry of the file that was opened (links followed) and its bytes. Closing the iterator ends the read."""
        ...

    async def write(
        self,
        sandbox_id: SandboxId,
        path: SandboxPath,
        data: bytes | AsyncIterable[bytes],
        options: WriteOptions,
    ) -> FileEntry: ...

    async def mkdir(
        self, sandbox_id: SandboxId, path: SandboxPath, *, parents: bool = False, user: str | None = None
    ) -> FileEntry:
        """`AlreadyExists` when a directory is there; `NOT_A_DIRECTORY` when something else is."""
        ...

    async def rename(
        self, sandbox_id: SandboxId, source: SandboxPath, target: SandboxPath, *, user: str | None = None
    ) -> FileEntry:
        """rename(2), making missing parents of `target`."""
        ...

    async def remove(self, sandbox_id: SandboxId, path: SandboxPath, *, recursive: bool = False) -> None: ...

    async def chown(self, sandbox_id: SandboxId, path: SandboxPath, user: str) -> None: ...

    async def copy_in(self, sandbox_id: SandboxId, host: Path, guest: SandboxPath, options: CopyOptions) -> FileEntry:
        """A file or a whole directory, with modes and symlinks."""
        ...

    async def copy_out(self, sandbox_id: SandboxId, guest: SandboxPath, host: Path, options: CopyOptions) -> None: ...

    async def watch(self, sandbox_id: SandboxId, path: SandboxPath, options: WatchOptions) -> FileEventStream: ...


class SnapshotControl(Protocol):
    async def capture(self, sandbox_id: SandboxId, options: SnapshotOptions) -> SnapshotRef:
        """A durable copy of a sandbox that runs or is paused with its memory. `AlreadyExists` for a name in use."""
        ...

    async def restore(self, snapshot_id: SnapshotId, options: RestoreOptions) -> SandboxInfo: ...

    async def fork(self, sandbox_id: SandboxId, options: ForkOptions) -> Sequence[SandboxInfo | FirkinError]:
        """Copies of a running sandbox, each under an identity of its own; an error in place of each that failed.

        Raises when not even the original could be captured: then there is no copy.
        """
        ...

    async def get(self, snapshot_id: SnapshotId) -> SnapshotInfo: ...

    async def list(self, filter: SnapshotFilter) -> Sequence[SnapshotInfo]: ...

    async def delete(self, snapshot_id: SnapshotId) -> None:
        """Sandboxes made from it live on: they have copies."""
        ...

    async def export_archive(self, snapshot_id: SnapshotId) -> SnapshotArchive: ...

    async def import_archive(
        self, snapshot_id: SnapshotId, archive: SnapshotArchive, options: SnapshotOptions | None = None
    ) -> SnapshotRef:
        """Keep an archive under that id. `SnapshotIntegrityFailure` when it is not what was exported.

        The template it was made on must be here, with the same content (`NotFound`).
        Only archives of people you trust: what is inside is mounted by the host.
        """
        ...


class PauseControl(Protocol):
    async def pause(self, sandbox_id: SandboxId, options: PauseOptions) -> PausedSandbox:
        """Stop everything inside and keep it. `WrongState` when it is paused already or has ended."""
        ...

    async def resume(self, sandbox_id: SandboxId, options: ResumeOptions | None = None) -> SandboxInfo:
        """Run on from where it was paused; without options as `ResumeOptions()` says."""
        ...


class PortControl(Protocol):
    async def connect(self, sandbox_id: SandboxId, port: Port) -> ByteChannel:
        """A TCP connection to 127.0.0.1:`port` inside. `PortFailure(refused=True)` when nothing listens."""
        ...

    async def list(self, sandbox_id: SandboxId) -> Sequence[PortBinding]:
        """Ports that something listens on inside, and those exposed on the host."""
        ...

    async def expose(self, sandbox_id: SandboxId, port: Port, exposure: PortExposure) -> PortBinding:
        """Listen on the host's loopback and forward each connection."""
        ...

    async def unexpose(self, sandbox_id: SandboxId, port: Port) -> None: ...

    async def domain_proxy(self, sandbox_id: SandboxId, spec: DomainProxySpec) -> DomainProxy:
        """Serve every port below a domain of the caller's; `UnsupportedCapability` where that is not offered."""
        ...


class WarmPoolControl(Protocol):
    """One pool for each template; its key is the template's id. Pools and what waits in them outlive the server."""

    async def prewarm(self, template_id: TemplateId, spec: WarmPoolSpec) -> WarmMaintainReport:
        """Have a pool of that size from now on, and wait until it is full or cannot be; depth 0 takes it away.

        A smaller depth ends what is too much. `NotFound` and `WrongState` for a template that
        cannot be used. What could not be made is told in the report, and tried again later.
        """
        ...

    async def maintain(self, targets: Sequence[WarmPoolTarget]) -> WarmMaintainReport:
        """As `prewarm` for each, at once; of two targets for one template the last counts. No other pool is touched."""
        ...

    async def status(self) -> WarmPoolStatus: ...

    async def checkout(self, template_id: TemplateId, policy: WarmLeasePolicy) -> WarmLease:
        """The entry that has waited longest, as a sandbox with the template's own environment and the default deadline.

        `CapacityRejected` when none is ready and one is required.
        """
        ...

    async def evict(self, key: WarmPoolKey, count: int) -> WarmMaintainReport:
        """End up to `count` that wait, in the pool's order. The pool fills itself again; `prewarm` changes its size.

        `NotFound` for a pool that there is not.
        """
        ...


class EventControl(Protocol):
    async def subscribe(self, filter: EventFilter) -> EventStream: ...

    async def journal(self, query: JournalQuery) -> Sequence[LifecycleEntry]:
        """What happened, durably: in order of its numbers, from after `query.after` on."""
        ...


class WebhookControl(Protocol):
    """Where the journal is delivered to: at least once, in order, again after failures and restarts."""

    async def add(self, spec: WebhookSpec) -> Webhook: ...

    async def list(self) -> Sequence[Webhook]: ...

    async def remove(self, webhook_id: str) -> None:
        """`NotFound` for an unknown one."""
        ...

    async def test(self, webhook_id: str) -> str:
        """Deliver an event of no sandbox at once; what went wrong, in a few words, or an empty text."""
        ...


class LogControl(Protocol):
    async def list(self, filter: LogFilter) -> Sequence[LogEntry]: ...

    async def stream(self, filter: LogFilter) -> LogStream:
        """Entries written from now on. A slow reader loses the oldest and holds up nobody."""
        ...


class MetricControl(Protocol):
    async def snapshot(self, filter: MetricFilter) -> Sequence[Metric]: ...

    async def usage(self, sandbox_id: SandboxId) -> SandboxUsage:
        """A fresh sample."""
        ...

    async def history(
        self, sandbox_id: SandboxId, start: datetime | None = None, end: datetime | None = None
    ) -> Sequence[SandboxUsage]:
        """Samples from `start` to `end`, oldest first, of a paused sandbox too.

        The first is taken within 5 s of the start; older ones may have been thinned out.
        """
        ...


class SandboxBackend(Protocol):
    async def capabilities(self) -> Capabilities: ...

    async def preflight(self) -> Preflight: ...

    async def info(self) -> BackendInfo: ...

    async def tiers(self) -> Sequence[TierStatus]:
        """The default first, then the strongest first, also those that this machine cannot do."""
        ...

    @property
    def templates(self) -> TemplateControl: ...

    @property
    def sandboxes(self) -> SandboxControl: ...

    @property
    def snapshots(self) -> SnapshotControl: ...

    @property
    def processes(self) -> ProcessControl | None: ...

    @property
    def filesystems(self) -> FilesystemControl | None: ...

    @property
    def ports(self) -> PortControl | None: ...

    @property
    def pauses(self) -> PauseControl | None: ...

    @property
    def builds(self) -> BuildControl | None: ...

    @property
    def volumes(self) -> VolumeControl | None: ...

    @property
    def secrets(self) -> SecretControl | None: ...

    @property
    def warm_pool(self) -> WarmPoolControl | None: ...

    @property
    def events(self) -> EventControl | None: ...

    @property
    def webhooks(self) -> WebhookControl | None: ...

    @property
    def logs(self) -> LogControl | None: ...

    @property
    def metrics(self) -> MetricControl | None: ...

    @property
    def node(self) -> NodeControl | None: ...

    async def start(self, policies: Policies) -> None:
        """Preflight, reconcile with what lives, begin to enforce `policies`. Raises when preflight is not ready."""
        ...

    async def aclose(self, *, kill_all: bool = False) -> None:
        """Stop serving. Sandboxes live on unless `kill_all`."""
        ...
