"""What a sandbox is made on: a template, a snapshot, or the files of a running sandbox that is forked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from firkin.engine.stored_forms import Origin, SnapshotRecord, TemplateRecord
from firkin.law.driver import RootFilesystem
from firkin.law.errors import BackendFailure, InvalidReason, InvalidSpec
from firkin.law.ids import SnapshotId, TemplateId
from firkin.law.resources import SandboxResources


@dataclass(frozen=True, slots=True, kw_only=True)
class Foundation:
    """`captured` is a directory of captured files, empty for a sandbox that begins with its template's alone.

    `env` and `resources` hold unless the request has its own; so does `usual`, without
    binding it to the disk that there is.
    """

    origin: Origin
    root: RootFilesystem
    default_user: str
    default_workdir: str
    template_id: TemplateId | None
    snapshot_id: SnapshotId | None = None
    captured: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    resources: SandboxResources | None = None
    usual: SandboxResources | None = None


def on_template(operation: str, record: TemplateRecord) -> Foundation:
    if record.root is None:
        raise BackendFailure(operation, "the engine", f"template {record.info.id} has no files")
    config = record.info.config
    return Foundation(
        origin=Origin(directory=record.directory, base_env=config.env, root=record.root, startup=record.info.startup),
        root=record.root,
        default_user=config.user,
        default_workdir=config.workdir,
        template_id=record.info.id,
        usual=record.info.resources,
    )


def on_snapshot(operation: str, record: SnapshotRecord, captured: str) -> Foundation:
    """`captured` is where its files are."""
    if record.origin.root is None:
        raise BackendFailure(operation, "the engine", f"snapshot {record.info.id} does not say what it was made on")
    return Foundation(
        origin=record.origin,
        root=record.origin.root,
        default_user=record.default_user,
        default_workdir=record.default_workdir,
        template_id=record.info.source_template_id,
        snapshot_id=record.info.id,
        captured=captured,
        env=record.info.env,
        resources=record.resources,
    )


def fitting(
    foundation: Foundation, wish: SandboxResources | None, otherwise: SandboxResources, *, continues: bool = False
) -> SandboxResources:
    """The resources of a sandbox made on it. `InvalidSpec` for a disk of another size than the captured one.

    What `continues` with its memory keeps that, and its processors, too.
    """
    own = foundation.resources
    if own is None:
        return wish or foundation.usual or otherwise
    if wish is not None and wish.disk_bytes != own.disk_bytes:
        raise InvalidSpec(
            "create a sandbox",
            InvalidReason.INVALID_RESOURCES,
            f"disk_bytes is {wish.disk_bytes}; a sandbox made from a snapshot keeps its disk of {own.disk_bytes} bytes",
        )
    if wish is not None and continues and (wish.vcpus, wish.memory_bytes) != (own.vcpus, own.memory_bytes):
        raise InvalidSpec(
            "create a sandbox",
            InvalidReason.INVALID_RESOURCES,
            f"{wish.vcpus} vcpus and {wish.memory_bytes} bytes of memory are asked for; a sandbox that goes on from a"
            f" snapshot keeps its {own.vcpus} and {own.memory_bytes}",
        )
    return wish or own
