"""Snapshots and pauses: durable references to a sandbox's past."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from firkin.law.ids import SandboxId, SnapshotId, TemplateId
from firkin.law.resources import SandboxResources
from firkin.law.sandboxes import SandboxDeadline


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
    name: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SnapshotIntegrity:
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotInfo:
    id: SnapshotId
    kind: SnapshotKind
    created_at: datetime
    source_sandbox_id: SandboxId | None = None
    source_template_id: TemplateId | None = None
    integrity: SnapshotIntegrity | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotFilter:
    kind: SnapshotKind | None = None


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


@dataclass(frozen=True, slots=True, kw_only=True)
class PauseOptions:
    keep_memory: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumeOptions:
    """`deadline` counts from the resumption; None means the runtime's default."""

    deadline: SandboxDeadline | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PausedSandbox:
    sandbox_id: SandboxId
    snapshot: SnapshotRef | None = None
