"""Snapshots and pauses: durable references to a sandbox's past."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from firkin.law.errors import InvalidReason
from firkin.law.ids import SandboxId, SnapshotId, TemplateId
from firkin.law.isolation import Isolation
from firkin.law.processes import check_environment
from firkin.law.resources import SandboxResources
from firkin.law.sandboxes import Lifecycle, SandboxDeadline, check_notes
from firkin.law.texts import check_text


class SnapshotKind(StrEnum):
    TEMPLATE = "template"
    FILESYSTEM = "filesystem"
    CONTINUATION = "continuation"
    PAUSE = "pause"


@dataclass(frozen=True, slots=True)
class SnapshotRef:
    id: SnapshotId
    kind: SnapshotKind


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotOptions:
    """`name` is unique for its `owner`: capturing it again is `AlreadyExists` unless `replace`.

    With `replace` the name moves to the new snapshot and the old one is deleted
    once the new one stands. `labels` are the front end's private notes. `kind` is what the
    snapshot must be; None takes what the sandbox's driver captures, and another kind than
    that is `UnsupportedCapability`.
    """

    name: str | None = None
    kind: SnapshotKind | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    replace: bool = False
    owner: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_text("check snapshot", InvalidReason.INVALID_METADATA, "name", self.name)
        check_notes(self.metadata, self.labels, self.owner)


@dataclass(frozen=True, slots=True)
class SnapshotIntegrity:
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotInfo:
    """The record of a snapshot. `resources` and `env` are what a restored sandbox gets unless it asks for others."""

    id: SnapshotId
    kind: SnapshotKind
    created_at: datetime
    name: str = ""
    source_sandbox_id: SandboxId | None = None
    source_template_id: TemplateId | None = None
    integrity: SnapshotIntegrity | None = None
    resources: SandboxResources | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    driver: str = ""
    isolation: Isolation | None = None
    owner: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotFilter:
    """All given fields must match; `labels` match as a subset."""

    kind: SnapshotKind | None = None
    source_sandbox_id: SandboxId | None = None
    name: str | None = None
    owner: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)

    def matches(self, info: SnapshotInfo) -> bool:
        return (
            self.kind in (None, info.kind)
            and self.source_sandbox_id in (None, info.source_sandbox_id)
            and self.name in (None, info.name)
            and self.owner in (None, info.owner)
            and self.labels.items() <= info.labels.items()
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotArchive:
    """A snapshot on its way in or out: streamed, never held whole."""

    media_type: str
    chunks: AsyncIterator[bytes]
    integrity: SnapshotIntegrity | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreOptions:
    """What a restored sandbox gets of its own; None and empty mean as the snapshot has it.

    `preserve_identity`: it takes the id of the sandbox that was captured, which
    must no longer exist (`AlreadyExists`); otherwise it is a new one.
    """

    preserve_identity: bool = False
    resources: SandboxResources | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    deadline: SandboxDeadline | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_environment(self.env)
        check_text("check environment", InvalidReason.INVALID_ENVIRONMENT, "environment", self.env)
        check_notes(self.metadata, {})


@dataclass(frozen=True, slots=True, kw_only=True)
class ForkOptions:
    """`count` copies; each gets `deadline` (None: the runtime's default) and all else from the original.

    `labels` None are the original's, too.
    """

    count: int = 1
    deadline: SandboxDeadline | None = None
    labels: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        check_notes({}, self.labels or {})


@dataclass(frozen=True, slots=True, kw_only=True)
class PauseOptions:
    """`require_healthy` refuses to pause a sandbox whose agent does not answer; without memory that is always so."""

    keep_memory: bool = True
    require_healthy: bool = False
    actor: str = "caller"

    def __post_init__(self) -> None:
        check_text("check actor", InvalidReason.INVALID_METADATA, "actor", self.actor)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumeOptions:
    """`deadline` counts from the resumption; None means the runtime's default.

    `keep_memory` False boots a sandbox that was paused with its memory anew from its files.
    `lifecycle` takes the place of the one it had; None keeps that.
    """

    deadline: SandboxDeadline | None = None
    keep_memory: bool = True
    lifecycle: Lifecycle | None = None
    actor: str = "caller"

    def __post_init__(self) -> None:
        check_text("check actor", InvalidReason.INVALID_METADATA, "actor", self.actor)


@dataclass(frozen=True, slots=True, kw_only=True)
class PausedSandbox:
    sandbox_id: SandboxId
    snapshot: SnapshotRef | None = None
