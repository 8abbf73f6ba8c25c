"""Snapshots and forks: a sandbox's files at one instant, kept, or given at once to others.

The sandbox is frozen for the copying alone. Hashing, syncing and recording come
after, while it runs on.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from firkin.engine import creation, snapshot_archives
from firkin.engine.foundations import on_snapshot
from firkin.engine.ledger import Why
from firkin.engine.node import Node, require, room_on_disk
from firkin.engine.roster import Resident
from firkin.engine.stored_forms import SnapshotRecord
from firkin.engine.substrate import substrate
from firkin.law.capabilities import CapabilityName, Permanent
from firkin.law.driver import KeepsParts
from firkin.law.errors import (
    CapacityRejected,
    FirkinError,
    InvalidReason,
    InvalidSpec,
    NotFound,
    ResourceKind,
    SandboxUnavailable,
    SnapshotIntegrityFailure,
    UnsupportedCapability,
    WrongState,
)
from firkin.law.events import SnapshotChanged
from firkin.law.ids import SandboxId, SnapshotId
from firkin.law.lifecycle_events import SNAPSHOT_MADE
from firkin.law.sandboxes import FromSnapshot, SandboxInfo, SandboxSpec
from firkin.law.snapshots import (
    ForkOptions,
    RestoreOptions,
    SnapshotArchive,
    SnapshotFilter,
    SnapshotInfo,
    SnapshotIntegrity,
    SnapshotKind,
    SnapshotOptions,
    SnapshotRef,
)
from firkin.law.states import SandboxState
from firkin.lifetimes import children
from firkin.phases import mark

CAPTURE_WITHIN_S = 600.0
MOST_FORKS = 100
FORKS_AT_ONCE = 8
_C = CapabilityName
_HOLDS = {
    SnapshotKind.FILESYSTEM: "files, without programs and their memory",
    SnapshotKind.CONTINUATION: "the whole machine, whose programs go on in what is made from it",
}
_CAPTURE, _RESTORE, _FORK = "capture a snapshot", "restore a snapshot", "fork a sandbox"
_EXPORT, _IMPORT = "export a snapshot", "import a snapshot"


class LocalSnapshots:
    """The `SnapshotControl` of the engine."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def capture(self, sandbox_id: SandboxId, options: SnapshotOptions) -> SnapshotRef:
        await require(self._node, _CAPTURE, sandbox_id, _C.SNAPSHOT_CAPTURE)
        info = await self._node.acts.run(self._capture(sandbox_id, options), name=f"snapshot {sandbox_id}")
        return SnapshotRef(info.id, info.kind)

    async def restore(self, snapshot_id: SnapshotId, options: RestoreOptions) -> SandboxInfo:
        node = self._node
        self._require_known(_RESTORE, snapshot_id, _C.SNAPSHOT_RESTORE)
        record = node.snapshots.get(_RESTORE, snapshot_id)
        spec = SandboxSpec(
            source=FromSnapshot(snapshot_id),
            resources=options.resources,
            env=options.env,
            deadline=options.deadline,
            metadata=options.metadata or record.info.metadata,
            network=record.network,
            hardened=record.hardened,
            owner=record.info.owner,
        )
        return await creation.create(node, spec, sandbox_id=_same_id(record) if options.preserve_identity else None)

    async def fork(self, sandbox_id: SandboxId, options: ForkOptions) -> Sequence[SandboxInfo | FirkinError]:
        await require(self._node, _FORK, sandbox_id, _C.SNAPSHOT_CAPTURE, _C.SNAPSHOT_RESTORE)
        if not 1 <= options.count <= MOST_FORKS:
            detail = f"{options.count} forks were asked for; 1 to {MOST_FORKS} are allowed"
            raise InvalidSpec(_FORK, InvalidReason.INVALID_RESOURCES, detail)
        return await self._node.acts.run(self._fork(sandbox_id, options), name=f"fork {sandbox_id}")

    async def get(self, snapshot_id: SnapshotId) -> SnapshotInfo:
        return self._node.snapshots.get("inspect a snapshot", snapshot_id).info

    async def list(self, filter: SnapshotFilter) -> Sequence[SnapshotInfo]:
        """Newest first."""
        found = [record.info for record in self._node.snapshots.all() if filter.matches(record.info)]
        return sorted(found, key=lambda info: info.created_at, reverse=True)

    async def delete(self, snapshot_id: SnapshotId) -> None:
        self._require_known("delete a snapshot", snapshot_id, _C.SNAPSHOT_DELETE)
        await self._node.acts.run(delete(self._node, snapshot_id), name=f"delete snapshot {snapshot_id}")

    async def export_archive(self, snapshot_id: SnapshotId) -> SnapshotArchive:
        """The chunks may be read once. A snapshot that is deleted meanwhile is exported to its end.

        Where its files are not what was written, that is refused, or ends the chunks.
        """
        self._require_known(_EXPORT, snapshot_id, _C.SNAPSHOT_EXPORT)
        record = self._node.snapshots.get(_EXPORT, snapshot_id)
        content = record.info.integrity
        if content is None:
            raise SnapshotIntegrityFailure(_EXPORT, snapshot_id, "its record has no digest")
        with self._node.snapshots.borrowed(_EXPORT, snapshot_id):
            async with substrate(_EXPORT, record.info.driver, within_s=CAPTURE_WITHIN_S):
                await self._node.snapshots.require_whole(_EXPORT, snapshot_id)

        async def chunks() -> AsyncIterator[bytes]:
            with self._node.snapshots.borrowed(_EXPORT, snapshot_id) as (_, directory):
                async for chunk in snapshot_archives.exported(record, directory, content):
                    yield chunk

        return SnapshotArchive(media_type=snapshot_archives.MEDIA_TYPE, chunks=chunks(), integrity=content)

    async def import_archive(
        self, snapshot_id: SnapshotId, archive: SnapshotArchive, options: SnapshotOptions | None = None
    ) -> SnapshotRef:
        if not self._node.tiers.are_several:
            self._node.offer.require(_IMPORT, _C.SNAPSHOT_IMPORT)
        if archive.media_type != snapshot_archives.MEDIA_TYPE:
            detail = f"its media type is {archive.media_type!r}; {snapshot_archives.MEDIA_TYPE!r} is understood"
            raise SnapshotIntegrityFailure(_IMPORT, snapshot_id, detail)
        info = await self._import(snapshot_id, archive, options or SnapshotOptions())
        return SnapshotRef(info.id, info.kind)

    def _require_known(self, operation: str, snapshot_id: SnapshotId, name: CapabilityName) -> None:
        """One that is here was captured by some tier, and its files are the engine's; of others the default speaks."""
        if not self._node.snapshots.holds(snapshot_id):
            self._node.offer.require(operation, name)

    async def _capture(self, sandbox_id: SandboxId, options: SnapshotOptions) -> SnapshotInfo:
        node, store = self._node, self._node.snapshots
        resident = await node.roster.meet(_CAPTURE, sandbox_id)
        kind = (await node.tiers.of(resident.info.driver)).captures
        _require_kind(_CAPTURE, options, resident.info.driver, kind)
        with store.naming(_CAPTURE, options.owner, options.name, replace=options.replace):
            async with store.aside() as aside:
                info = await _captured(node, resident, aside, _CAPTURE, also_paused=True)
                record = _record(node, resident, info, options, kind, await store.settled(aside))
                mark("settled")
                old = store.named(options.owner, options.name) if options.name else None
                await store.keep(record, aside)
                mark("kept")
            await _remark(node, resident, record.info)
            mark("remarked")
            node.events.publish(SnapshotChanged(sandbox_id, record.info.id))
            if old is not None:
                await delete(node, old.info.id)
        return record.info

    async def _fork(self, sandbox_id: SandboxId, options: ForkOptions) -> Sequence[SandboxInfo | FirkinError]:
        node = self._node
        resident = await node.roster.meet(_FORK, sandbox_id)
        gate, no_room = asyncio.Semaphore(FORKS_AT_ONCE), list[FirkinError]()
        async with node.snapshots.aside() as aside:
            info = await _captured(node, resident, aside, _FORK, also_paused=False)
            kind = (await node.tiers.of(info.driver)).captures
            record = _record(node, resident, info, SnapshotOptions(), kind, None)
            spec = _twin(info, options)
            tier = await node.tiers.restoring(_FORK, info.driver, None)

            async def one() -> SandboxInfo | FirkinError:
                async with gate:
                    if no_room:  # those before waited for some in vain
                        return no_room[0]
                    try:
                        foundation = replace(on_snapshot(_FORK, record, str(aside)), snapshot_id=None)
                        return await creation.create_on(node, spec, foundation, tier)
                    except FirkinError as error:
                        no_room.extend([error] if isinstance(error, CapacityRejected) else [])
                        return error

            async with children() as forks:
                return await asyncio.gather(
                    *(forks.start(one(), name=f"fork {number} of {sandbox_id}") for number in range(options.count))
                )

    async def _import(
        self, snapshot_id: SnapshotId, archive: SnapshotArchive, options: SnapshotOptions
    ) -> SnapshotInfo:
        node, store = self._node, self._node.snapshots
        with store.naming(_IMPORT, options.owner, options.name, replace=False):
            async with store.aside() as aside:
                arrived = await snapshot_archives.imported(
                    archive.chunks,
                    aside,
                    announced=archive.integrity,
                    require_disk=lambda size: _require_disk(node, size),
                )
                driver = await node.tiers.verifier(_IMPORT, arrived.record.info.driver)
                _require_kind(_IMPORT, options, driver.name, arrived.record.info.kind)
                record = _naturalised(node, arrived.record, snapshot_id, options)
                async with substrate(_IMPORT, driver.name, within_s=CAPTURE_WITHIN_S):
                    await driver.verify(aside)
                    if isinstance(driver, KeepsParts) and record.origin.root is not None:
                        await driver.require_parts(aside, record.origin.root, record.resources)
                content = await store.settled(aside)
                record = replace(record, info=replace(record.info, integrity=content))
                await node.acts.run(store.keep(record, aside), name=f"keep snapshot {snapshot_id}")
        node.events.publish(SnapshotChanged(None, snapshot_id))
        return record.info


async def _remark(node: Node, resident: Resident, info: SnapshotInfo) -> None:
    """In the journal of its source, unless that has gone meanwhile: the snapshot stands either way."""
    with suppress(FirkinError):
        async with resident.turn(_CAPTURE):
            await node.roster.check_present(_CAPTURE, resident)
            await node.ledger.remark(resident, why=Why(cause=f"{SNAPSHOT_MADE}{info.id}"))


async def delete(node: Node, snapshot_id: SnapshotId) -> None:
    """`NotFound` for an unknown one. Its files go in the background."""
    record = await node.snapshots.delete("delete a snapshot", snapshot_id)
    node.events.publish(SnapshotChanged(record.info.source_sandbox_id, snapshot_id))


async def _captured(node: Node, resident: Resident, into: Path, operation: str, *, also_paused: bool) -> SandboxInfo:
    """Copy the files; the record of that instant. Whoever wants it dead meanwhile does not wait for the copy."""
    async with resident.turn(operation):
        await node.roster.check_present(operation, resident)
        info, instance = resident.info, resident.instance
        if info.state is not SandboxState.RUNNING and not (also_paused and info.state is SandboxState.PAUSED):
            raise WrongState(operation, ResourceKind.SANDBOX, resident.id, info.state.value)
        if instance is None:
            raise WrongState(operation, ResourceKind.SANDBOX, resident.id, "paused without its memory; resume it first")
        async with children() as work:
            copying = work.start(_copied(node, resident, into, operation), name=f"capture {resident.id}")
            hurried = work.start(resident.hurry.wait(), name=f"hurry {resident.id}")
            await asyncio.wait({copying, hurried}, return_when=asyncio.FIRST_COMPLETED)
            if not copying.done():
                raise SandboxUnavailable(operation, resident.id, "it was killed meanwhile")
            copying.result()
        return info


async def _copied(node: Node, resident: Resident, into: Path, operation: str) -> None:
    assert resident.instance is not None  # the caller holds the lock and has looked
    async with substrate(operation, resident.info.driver, within_s=CAPTURE_WITHIN_S, sandbox_id=resident.id):
        await resident.instance.capture(into, room_bytes=room_on_disk(node))


def _require_kind(operation: str, options: SnapshotOptions, driver: str, kind: SnapshotKind) -> None:
    """Files alone are no part of a continuation, nor the other way round."""
    if options.kind in (None, kind):
        return
    reason = Permanent(f"a snapshot by the driver {driver!r} is of the kind {kind.value!r}: {_HOLDS.get(kind, '')}")
    raise UnsupportedCapability(operation, _C.SNAPSHOT_CAPTURE, reason)


def _require_disk(node: Node, needed: int) -> None:
    if needed > (free := room_on_disk(node)):
        raise CapacityRejected(_IMPORT, "free disk on the host", requested=needed, available=free, unit="bytes")


def _record(
    node: Node,
    resident: Resident,
    info: SandboxInfo,
    options: SnapshotOptions,
    kind: SnapshotKind,
    content: SnapshotIntegrity | None,
) -> SnapshotRecord:
    template = node.templates.of_directory(resident.origin.directory)
    kept = SnapshotInfo(
        id=SnapshotId(f"s{secrets.token_hex(10)}"),
        kind=kind,
        created_at=node.clock.now(),
        name=options.name or "",
        source_sandbox_id=info.id,
        source_template_id=info.template_id,
        integrity=content,
        resources=info.resources,
        env=info.env,
        metadata=dict(options.metadata),
        driver=info.driver,
        isolation=info.isolation,
        owner=options.owner,
        labels=dict(options.labels),
    )
    return SnapshotRecord(
        info=kept,
        origin=resident.origin,
        default_user=info.default_user,
        default_workdir=info.default_workdir,
        network=info.network,
        hardened=info.hardened,
        resources=info.resources,
        template_digest=template.info.digest if template is not None else "",
    )


def _twin(info: SandboxInfo, options: ForkOptions) -> SandboxSpec:
    """What makes a sandbox like that one. `source` is not looked at: the files are at hand."""
    return SandboxSpec(
        source=FromSnapshot(SnapshotId("fork")),
        env=info.env,
        deadline=options.deadline,
        metadata=info.metadata,
        network=info.network,
        lifecycle=info.lifecycle,
        volumes=info.volumes,
        hardened=info.hardened,
        owner=info.owner,
        labels=info.labels if options.labels is None else options.labels,
    )


def _same_id(record: SnapshotRecord) -> SandboxId:
    if record.info.source_sandbox_id is None:
        detail = (
            f"snapshot {record.info.id} does not say which sandbox it was captured from; leave preserve_identity out"
        )
        raise InvalidSpec(_RESTORE, InvalidReason.MISSING_SANDBOX, detail)
    return record.info.source_sandbox_id


def _naturalised(
    node: Node, record: SnapshotRecord, snapshot_id: SnapshotId, options: SnapshotOptions
) -> SnapshotRecord:
    """An imported record with the places of this machine. `NotFound` when its template is not here."""
    template = node.templates.with_digest(record.template_digest) if record.template_digest else None
    if template is None:
        wanted = str(record.info.source_template_id or "")
        detail = f"the snapshot was made on content {record.template_digest}; prepare that template here first"
        raise NotFound(_IMPORT, ResourceKind.TEMPLATE, wanted, detail=detail)
    info = replace(
        record.info,
        id=snapshot_id,
        name=options.name or "",
        source_template_id=template.info.id,
        isolation=node.tiers.isolation_of(record.info.driver),
        metadata=dict(options.metadata) or record.info.metadata,
        owner=options.owner,
        labels=dict(options.labels),
    )
    origin = replace(record.origin, directory=template.directory, base_env=template.info.config.env, root=template.root)
    return replace(record, info=info, origin=origin)
