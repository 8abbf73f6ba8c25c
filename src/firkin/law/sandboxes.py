"""Sandboxes: what to create, and the record of what was created."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from firkin.law.errors import InvalidReason, InvalidSpec
from firkin.law.ids import SandboxId, SnapshotId, TemplateId
from firkin.law.isolation import Isolation
from firkin.law.network import NetworkPolicy
from firkin.law.processes import Signal, check_environment
from firkin.law.resources import SandboxResources
from firkin.law.states import EndCause, SandboxState
from firkin.law.texts import check_text
from firkin.law.volumes import VolumeMount, check_mounts

MAX_METADATA_BYTES = 64 * 1024
MAX_LIFETIME_S = 10 * 365 * 24 * 3600.0


@dataclass(frozen=True, slots=True)
class FromTemplate:
    template_id: TemplateId


@dataclass(frozen=True, slots=True)
class FromSnapshot:
    snapshot_id: SnapshotId


SandboxSource = FromTemplate | FromSnapshot


@dataclass(frozen=True, slots=True)
class Timeout:
    """So many seconds from now. 0 means at once."""

    seconds: float

    def __post_init__(self) -> None:
        if not 0 <= self.seconds <= MAX_LIFETIME_S:
            raise InvalidSpec(
                "check deadline",
                InvalidReason.INVALID_TIMEOUT,
                f"the timeout is {self.seconds:g} s; it must be between 0 and {MAX_LIFETIME_S:.0f}",
            )


@dataclass(frozen=True, slots=True)
class At:
    """At that instant; it must carry a time zone."""

    when: datetime

    def __post_init__(self) -> None:
        if self.when.tzinfo is None:
            raise InvalidSpec(
                "check deadline",
                InvalidReason.INVALID_TIMEOUT,
                "the deadline has no time zone; add one, e.g. UTC",
            )


@dataclass(frozen=True, slots=True)
class Never:
    """No deadline: it lives until somebody ends it."""


SandboxDeadline = Timeout | At | Never


class OnTimeout(StrEnum):
    KILL = "kill"
    PAUSE = "pause"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lifecycle:
    """What the deadline does, and whether traffic wakes a paused sandbox."""

    on_timeout: OnTimeout = OnTimeout.KILL
    keep_memory: bool = True
    auto_resume: bool = False


class PauseMode(StrEnum):
    """What a pause kept: everything, or the files alone (resuming then boots anew)."""

    FULL = "full"
    FILESYSTEM = "filesystem"


def check_notes(metadata: Mapping[str, str], labels: Mapping[str, str], owner: str = "") -> None:
    """`InvalidSpec` for what callers write beside a sandbox or a snapshot and nobody could keep."""
    for what, value in (("metadata", metadata), ("labels", labels), ("owner", owner)):
        check_text(f"check {what}", InvalidReason.INVALID_METADATA, what, value)


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxSpec:
    """What to create.

    `env` is seen by every process; `metadata` is the caller's own and never seen
    inside. `owner` is the tenant it belongs to and `labels` are the front end's
    private notes: both only filter. `volumes` are of the same owner. `deadline` None means the runtime's default.
    All of it is kept, so it must be Unicode text (`InvalidSpec`); a `Command` may be given other bytes.
    `isolation` None means the template's, else the server's default; from a snapshot, that of the
    sandbox that was captured. `hardened` sets no_new_privs, so sudo inside stops working.
    """

    source: SandboxSource
    resources: SandboxResources | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    deadline: SandboxDeadline | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    network: NetworkPolicy = field(default_factory=NetworkPolicy)
    lifecycle: Lifecycle = field(default_factory=Lifecycle)
    volumes: tuple[VolumeMount, ...] = ()
    isolation: Isolation | None = None
    hardened: bool = False
    owner: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_environment(self.env)
        check_mounts(self.volumes)
        check_text("check environment", InvalidReason.INVALID_ENVIRONMENT, "environment", self.env)
        check_notes(self.metadata, self.labels, self.owner)
        size = sum(len(key.encode()) + len(value.encode()) for key, value in self.metadata.items())
        if size > MAX_METADATA_BYTES:
            raise InvalidSpec(
                "check metadata",
                InvalidReason.INVALID_METADATA,
                f"the metadata takes {size} bytes; at most {MAX_METADATA_BYTES} are allowed",
            )

    @classmethod
    def from_template(cls, template_id: str, **fields: object) -> SandboxSpec:
        return cls(source=FromTemplate(TemplateId(template_id)), **fields)  # type: ignore[arg-type]  # forwarded fields

    @classmethod
    def from_snapshot(cls, snapshot_id: str, **fields: object) -> SandboxSpec:
        return cls(source=FromSnapshot(SnapshotId(snapshot_id)), **fields)  # type: ignore[arg-type]  # forwarded fields


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxInfo:
    """The record of a sandbox. `deadline_at` None means never. `end_*` are set once it has ended.

    While it is paused, `paused_at` and `pause_mode` say since when and with what kept;
    `unresponsive_at_pause`: its agent did not answer then, so it cannot be resumed with its memory.
    `isolation` is the tier that was chosen, never a wish; None over a driver that is no tier.
    """

    id: SandboxId
    state: SandboxState
    created_at: datetime
    resources: SandboxResources
    template_id: TemplateId | None = None
    snapshot_id: SnapshotId | None = None
    started_at: datetime | None = None
    deadline_at: datetime | None = None
    paused_at: datetime | None = None
    pause_mode: PauseMode | None = None
    unresponsive_at_pause: bool = False
    ended_at: datetime | None = None
    end_cause: EndCause | None = None
    end_detail: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    network: NetworkPolicy = field(default_factory=NetworkPolicy)
    lifecycle: Lifecycle = field(default_factory=Lifecycle)
    volumes: tuple[VolumeMount, ...] = ()
    driver: str = ""
    isolation: Isolation | None = None
    hardened: bool = False
    owner: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    default_user: str = "user"
    default_workdir: str = "/home/user"


_SHOWN = frozenset(SandboxState) - {SandboxState.POOLED}


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxFilter:
    """All given fields must match. `metadata` and `labels` match as subsets.

    The default is every sandbox that has not been deleted; those that wait in a warm
    pool are shown only where `states` names them.
    """

    states: frozenset[SandboxState] | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    owner: str | None = None
    template_id: TemplateId | None = None

    def matches(self, info: SandboxInfo) -> bool:
        if info.state not in (_SHOWN if self.states is None else self.states):
            return False
        if self.owner is not None and info.owner != self.owner:
            return False
        if self.template_id is not None and info.template_id != self.template_id:
            return False
        return self.metadata.items() <= info.metadata.items() and self.labels.items() <= info.labels.items()


@dataclass(frozen=True, slots=True)
class Graceful:
    """SIGTERM to every process; those left after `grace_s` are killed."""

    grace_s: float = 5.0


@dataclass(frozen=True, slots=True)
class ForceAfter:
    """As `Graceful`, with the caller's patience."""

    seconds: float


StopMode = Graceful | ForceAfter

# `Signal.KILL` is the default of every kill: a kill is at once, and `stop` is the gentle end.
KillSignal = Signal | int


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachOptions:
    require_running: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteOptions:
    """`force` kills a sandbox that still runs. `actor` is who wishes it, for the journal: a key's name, say.

    `delete_snapshots` also deletes every snapshot that was captured from it.
    """

    force: bool = False
    delete_snapshots: bool = False
    actor: str = "caller"

    def __post_init__(self) -> None:
        check_text("check actor", InvalidReason.INVALID_METADATA, "actor", self.actor)


@dataclass(frozen=True, slots=True, kw_only=True)
class StateChange:
    """One line of a journal. `actor` wished it: ``caller``, ``engine``, ``deadline`` or a key's name."""

    at: datetime
    was: SandboxState | None
    became: SandboxState
    cause: str
    actor: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxHistory:
    """The last record of a sandbox, also of one that has ended, and every change of its state, oldest first.

    `peak_memory_bytes` is the most memory that was measured; 0 when nothing was.
    """

    info: SandboxInfo
    changes: tuple[StateChange, ...]
    peak_memory_bytes: int = 0
