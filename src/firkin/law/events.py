"""What happened, as it happens. Delivery is best effort: a slow reader loses the oldest."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from firkin.law.files import FileEventKind, SandboxPath
from firkin.law.ids import ProcessId, SandboxId, SnapshotId, TemplateId, WarmPoolKey
from firkin.law.ports import Port
from firkin.law.processes import ProcessStatus
from firkin.law.states import SandboxState


@dataclass(frozen=True, slots=True)
class LifecycleChanged:
    """`cause` is the sentence that the journal holds."""

    sandbox_id: SandboxId
    state: SandboxState
    cause: str


@dataclass(frozen=True, slots=True)
class ProcessChanged:
    sandbox_id: SandboxId
    process_id: ProcessId
    status: ProcessStatus


@dataclass(frozen=True, slots=True)
class SnapshotChanged:
    sandbox_id: SandboxId | None
    snapshot_id: SnapshotId


@dataclass(frozen=True, slots=True)
class WarmPoolChanged:
    key: WarmPoolKey


@dataclass(frozen=True, slots=True)
class PortChanged:
    sandbox_id: SandboxId
    port: Port


@dataclass(frozen=True, slots=True)
class FileChanged:
    """A file was changed through Firkin; what programs inside do is told by a watch."""

    sandbox_id: SandboxId
    path: SandboxPath
    change: FileEventKind


EventKind = LifecycleChanged | ProcessChanged | FileChanged | SnapshotChanged | WarmPoolChanged | PortChanged


@dataclass(frozen=True, slots=True)
class Event:
    kind: EventKind
    observed_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class EventFilter:
    """`sandbox_id` None takes every event."""

    sandbox_id: SandboxId | None = None

    def matches(self, event: Event) -> bool:
        return self.sandbox_id is None or getattr(event.kind, "sandbox_id", None) == self.sandbox_id


@dataclass(frozen=True, slots=True, kw_only=True)
class LifecycleEntry:
    """One change of a sandbox's state as the journal keeps it. `number` grows and never comes twice.

    `run_began` is when the run began that went on until the change: None where the sandbox did not run.
    """

    number: int
    sandbox_id: SandboxId
    at: datetime
    was: SandboxState | None
    became: SandboxState
    cause: str
    actor: str
    owner: str = ""
    template_id: TemplateId | None = None
    run_began: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalQuery:
    """Entries numbered above `after`, at most `limit`; `newest_first` turns the order round."""

    after: int = 0
    sandbox_id: SandboxId | None = None
    owner: str | None = None
    became: frozenset[SandboxState] = frozenset()
    offset: int = 0
    limit: int = 100
    newest_first: bool = False


class EventStream(Protocol):
    def __aiter__(self) -> AsyncIterator[Event]: ...

    async def __anext__(self) -> Event: ...

    async def aclose(self) -> None: ...
