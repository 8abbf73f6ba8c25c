"""Snapshots are not built yet: every verb refuses, by its own capability."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from firkin.engine.offer import SNAPSHOTS
from firkin.law.capabilities import CapabilityName
from firkin.law.errors import UnsupportedCapability
from firkin.law.ids import SandboxId, SnapshotId
from firkin.law.sandboxes import SandboxInfo
from firkin.law.snapshots import (
    RestoreOptions,
    SnapshotArchive,
    SnapshotFilter,
    SnapshotInfo,
    SnapshotOptions,
    SnapshotRef,
)


class RefusedSnapshots:
    """The `SnapshotControl` of an engine without snapshots."""

    async def capture(self, sandbox_id: SandboxId, options: SnapshotOptions) -> SnapshotRef:
        _refuse("capture a snapshot", CapabilityName.SNAPSHOT_CAPTURE)

    async def restore(self, snapshot_id: SnapshotId, options: RestoreOptions) -> SandboxInfo:
        _refuse("restore a snapshot", CapabilityName.SNAPSHOT_RESTORE)

    async def get(self, snapshot_id: SnapshotId) -> SnapshotInfo:
        _refuse("inspect a snapshot", CapabilityName.SNAPSHOT_CAPTURE)

    async def list(self, filter: SnapshotFilter) -> Sequence[SnapshotInfo]:
        _refuse("list snapshots", CapabilityName.SNAPSHOT_CAPTURE)

    async def delete(self, snapshot_id: SnapshotId) -> None:
        _refuse("delete a snapshot", CapabilityName.SNAPSHOT_DELETE)

    async def export_archive(self, snapshot_id: SnapshotId) -> SnapshotArchive:
        _refuse("export a snapshot", CapabilityName.SNAPSHOT_EXPORT)

    async def import_archive(self, snapshot_id: SnapshotId, archive: SnapshotArchive) -> SnapshotRef:
        _refuse("import a snapshot", CapabilityName.SNAPSHOT_IMPORT)


def _refuse(operation: str, capability: CapabilityName) -> NoReturn:
    raise UnsupportedCapability(operation, capability, SNAPSHOTS)
