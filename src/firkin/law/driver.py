"""The seam that isolates: boot an instance, give a byte channel to its agent, end it.

A driver never sees HTTP, records or deadlines. An instance is known to the rest
by its sandbox id and by an `InstanceRef`, which is plain data: with it a driver
of a later process finds the same instance again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

from firkin.law.backend import Preflight, TierStatus
from firkin.law.capabilities import Capabilities
from firkin.law.ids import SandboxId
from firkin.law.isolation import Isolation, IsolationReport
from firkin.law.network import NetworkPolicy
from firkin.law.network_use import NetworkUse, RefusedFlow
from firkin.law.ports import ByteChannel
from firkin.law.resources import SandboxResources
from firkin.law.snapshots import SnapshotKind
from firkin.law.states import EndCause
from firkin.law.templates import ImageConfig, TemplateSpec
from firkin.law.volumes import BootVolume, VolumeKeeper

MOST_LAYERS = 80
"""Of one root, above its base. Older kernels take the names of all in 256 bytes (fsconfig(2))."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RootFilesystem:
    """A prepared template's files, as host paths.

    `base` becomes ``/`` (copy-on-write). Each of `layers` lies above what is before
    it, the last on top: a directory as overlayfs keeps them, with its marks for
    what a layer removes. Each of `shared` is a host directory shown read-only at
    the path inside, in this order: ``{"/usr": "/usr"}`` for the host template. Each
    of `hidden` is a directory inside that appears empty.
    """

    base: str
    layers: tuple[str, ...] = ()
    shared: Mapping[str, str] = field(default_factory=dict)
    hidden: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedRoot:
    """What a preparer made: the files, the image's wishes, unpacked size and a digest of the content's origin."""

    root: RootFilesystem
    config: ImageConfig
    size_bytes: int
    digest: str


class RootPreparer(Protocol):
    """Turns a template's source into a root file system."""

    async def prepare(self, spec: TemplateSpec, into: Path, report: Callable[[str], None]) -> PreparedRoot:
        """Fill the empty directory `into`. `report` takes one line of progress at a time.

        Raises `TemplatePrepareFailure`; the caller removes `into` then.
        """
        ...


@runtime_checkable
class LayeringPreparer(RootPreparer, Protocol):
    """A preparer that can also add a source to the files of another template."""

    async def prepare_on(
        self, base: PreparedRoot, spec: TemplateSpec, into: Path, report: Callable[[str], None]
    ) -> PreparedRoot:
        """As `prepare`, for a source that is no root of its own."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class BootPlan:
    """Everything a driver needs to make one instance.

    Its own files begin empty, or as `captured`, a directory that `Instance.capture`
    filled; with `continues` they are those that the destroyed instance of the same
    id left. `machine_id` (32 hexadecimal digits) is written to ``/etc/machine-id``;
    empty leaves what is there. `volumes` are mounted over its files; a path that cannot
    be a mount point there is `InvalidSpec`. `isolation` is the name of a tier, for a driver of
    several; empty is its default. A driver of one tier does not look at it. `repeats`: it is
    how each sandbox of a template begins, so more of it may be worth having ready. `leaves` says which files its
    agent will be told to leave inside, and how many bytes each; a driver that keeps machines may make room for them.
    """

    sandbox_id: SandboxId
    root: RootFilesystem
    resources: SandboxResources
    network: NetworkPolicy = field(default_factory=NetworkPolicy)
    hostname: str = "sandbox"
    machine_id: str = ""
    hardened: bool = False
    captured: str = ""
    continues: bool = False
    volumes: tuple[BootVolume, ...] = ()
    isolation: str = ""
    repeats: bool = False
    leaves: Callable[[], Mapping[str, int]] = field(default=dict, compare=False)


@dataclass(frozen=True, slots=True)
class InstanceRef:
    """What must be remembered to find an instance after a restart: JSON-able facts."""

    driver: str
    facts: Mapping[str, int | str]


@dataclass(frozen=True, slots=True)
class InstanceEnd:
    cause: EndCause
    detail: str = ""


class Instance(Protocol):
    """One running isolated computer."""

    @property
    def sandbox_id(self) -> SandboxId: ...

    @property
    def ref(self) -> InstanceRef: ...

    async def dial(self) -> ByteChannel:
        """A new connection to the agent; `SandboxUnavailable` when it is gone."""
        ...

    async def ended(self) -> InstanceEnd:
        """Wait until it has ended by itself or was destroyed, and say why."""
        ...

    async def destroy(self) -> None:
        """End it and release everything but its files. Idempotent; returns when no process of it is left."""
        ...

    async def freeze(self) -> None:
        """Stop every process where it is. Idempotent; returns when nothing inside runs any more."""
        ...

    async def thaw(self) -> None:
        """Let everything run on. Idempotent."""
        ...

    async def reclaim(self) -> None:
        """Give the memory of a frozen instance back to the host, as far as the host can take it. Never fails."""
        ...

    async def capture(self, into: Path, *, room_bytes: int) -> None:
        """Copy its files, as they are at one instant, into the empty directory `into`. The caller makes them durable.

        It is frozen for as long as copying needs, unless it is already. Raises
        `CapacityRejected` when that needs more than `room_bytes` of the host's
        disk, `HostDiskFull`, `BackendFailure`, `IoFailure`.
        """
        ...

    async def dial_port(self, port: int) -> ByteChannel | None:
        """A TCP connection to loopback inside, past the agent; None where only the agent can make one.

        `PortFailure` with `refused` when nothing listens.
        """
        ...

    async def resize(self, resources: SandboxResources) -> None:
        """Let it use that much from now on; its disk stays as it is.

        `UnsupportedCapability`, with nothing changed, where it keeps what it was booted with.
        `BackendFailure` when not all of it holds now.
        """
        ...

    async def set_network(self, policy: NetworkPolicy) -> None:
        """Put `policy` in force in place of the one before, also for connections that are open. Frozen or not.

        `UnsupportedCapability` for what it cannot enforce. `BackendFailure` when it could
        not be put in force: nothing outside is reached then, until a later call succeeds.
        """
        ...

    async def network(self) -> NetworkUse | None:
        """Its address and what became of its traffic; None where there is none to count."""
        ...

    async def refused(self) -> Sequence[RefusedFlow]:
        """The latest refused flows, the newest first. Cheap: it is asked every second."""
        ...

    async def isolation(self) -> IsolationReport:
        """What holds it in, read now from the system it runs on, and never taken from what was asked for.

        What cannot be read is absent from the report, with the reason. Frozen or
        not. `SandboxUnavailable` once it has ended.
        """
        ...

    async def usage(self) -> Mapping[str, int]:
        """Raw counters: ``cpu_us``, ``memory_bytes``, ``memory_cache_bytes``, ``disk_used_bytes``, ``oom_kills``."""
        ...


class EgressKeeper(Protocol):
    """Leads what sandboxes send out past a gateway of their owner's, outside of them."""

    async def lead(
        self, sandbox_id: SandboxId, *, owner: str, policy: NetworkPolicy, secrets: Mapping[str, str]
    ) -> str:
        """What holds for a living sandbox from now on, by name and with these values of the secrets in its rules.

        The certificate (PEM) of the authority that it has to trust, the same as long as its
        rules name the same hosts; empty without rules. Until the first call for it, a sandbox whose policy
        `is_inspected` reaches nothing. Raises `BackendFailure`.
        """
        ...

    def report(self, told: Callable[[SandboxId, str], None]) -> None:
        """Tell of the deaths and revivals of gateways, a sentence for each sandbox that they concern."""
        ...


class Driver(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def captures(self) -> SnapshotKind:
        """What `Instance.capture` holds: ``FILESYSTEM``, the files; ``CONTINUATION``, the whole machine.

        A boot from the first has no programs; in one from the second they go on where they stopped.
        """
        ...

    @property
    def volumes(self) -> VolumeKeeper | None:
        """None for a driver that cannot mount volumes; it is never given any."""
        ...

    @property
    def egress(self) -> EgressKeeper | None:
        """None for a driver without gateways; it is never given a policy that `is_inspected`."""
        ...

    async def capabilities(self) -> Capabilities: ...

    async def preflight(self) -> Preflight: ...

    async def start(self) -> None:
        """Make ready to boot: helpers, pools."""
        ...

    async def boot(self, plan: BootPlan) -> Instance:
        """An instance whose agent listens. On failure or cancellation nothing of it is left."""
        ...

    async def adopt(self, sandbox_id: SandboxId, ref: InstanceRef) -> Instance | None:
        """The instance that an earlier process booted, or None when it no longer lives."""
        ...

    async def sweep(self, keep: Collection[SandboxId]) -> Sequence[str]:
        """Remove everything labelled ours that belongs to no sandbox in `keep`; say what was removed."""
        ...

    async def halt(self, sandbox_id: SandboxId) -> bool:
        """End whatever runs under that id and keep its files; whether there are any. Idempotent.

        For what an earlier process left: an `Instance` in hand is destroyed by itself.
        """
        ...

    async def verify(self, captured: Path) -> None:
        """See whether what a stranger says is a capture can be booted from, and mend it where that is needed.

        May change the files. Raises `SnapshotIntegrityFailure` for what cannot be used.
        """
        ...

    async def commit(self, sandbox_id: SandboxId, into: Path) -> None:
        """Copy what a destroyed instance changed into the empty directory `into`, as a layer above its root.

        With `RootFilesystem.layers` longer by it, another instance begins where this
        one ended, without its programs. The caller makes it durable. Raises
        `BackendFailure` while the instance lives, `HostDiskFull`, `IoFailure`.
        """
        ...

    async def discard(self, sandbox_id: SandboxId) -> None:
        """Remove the files of a destroyed instance. Idempotent."""
        ...

    async def live(self) -> Sequence[SandboxId]:
        """What the substrate itself says is running, not our records."""
        ...

    async def aclose(self) -> None:
        """Stop helpers and give back pools. Instances live on."""
        ...


@runtime_checkable
class PreparesInstances(Protocol):
    """A driver that makes parts of instances before they are asked for, under names that are sandboxes' later."""

    def prepared(self, isolation: str, root: RootFilesystem, resources: SandboxResources) -> SandboxId | None:
        """The name of one that fits a boot of `root`, as a template, on the tier `isolation` (see `BootPlan`).

        Nobody else gets it. Boot with it, soon, or `discard` it. None where nothing is ready.
        """
        ...


@runtime_checkable
class KeepsParts(Protocol):
    """A driver whose captures need more than they hold: parts that it keeps itself, for as long as any needs them."""

    async def require_parts(self, captured: Path, root: RootFilesystem, resources: SandboxResources) -> None:
        """See whether a sandbox made on `root` could go on here from `captured`, which `verify` has passed.

        Raises what a boot from there would raise. As long as the first boot on `root` may take.
        """
        ...

    async def forget_parts(self, captures: Collection[Path]) -> None:
        """Remove the parts that nothing needs any more. `captures` are all that there are; some may be others' or none.

        After what lives has been adopted.
        """
        ...


@runtime_checkable
class SharesVolumes(Protocol):
    """A driver that can mount what the keeper of another tier keeps."""

    def share_volumes(self, keeper: VolumeKeeper) -> None:
        """Before `start`: mount from `keeper`, which is started and closed by its owner, and say that it is `volumes`.

        A keeper of a kind that it does not know is left alone.
        """
        ...


@runtime_checkable
class TieredDriver(Driver, Protocol):
    """Several drivers that look like one: the default's name, volumes and gateways are its own.

    A boot goes where `BootPlan.isolation` says. A tier is loaded and looked at when
    it is first asked about, and started when something is to be booted on it.
    """

    async def tiers(self) -> Sequence[TierStatus]:
        """See `SandboxBackend.tiers`."""
        ...

    async def tier(self, isolation: Isolation | None) -> TierStatus:
        """One of them; None is the default, and `STRONGEST` the strongest that is ready."""
        ...

    def isolation_of(self, driver: str) -> Isolation | None:
        """The tier of the driver of that name, loaded or not; None for one that is not here."""
        ...

    async def of(self, driver: str) -> Driver:
        """The driver of that name, started. `BackendFailure` with the reasons when it cannot be."""
        ...
