"""Snapshots are what was written and what was asked for: nothing is made of others, and no gigabytes are read twice."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from firkin.drivers.memory import MemoryDriver
from firkin.engine import captured_files
from firkin.law.errors import SnapshotIntegrityFailure, UnsupportedCapability
from firkin.law.ids import SnapshotId
from firkin.law.snapshots import RestoreOptions, SnapshotIntegrity, SnapshotKind, SnapshotOptions
from firkin.lifetimes import children

from .conftest import SPEC, Engine, engine_over

Damage = Callable[[Path], object]


def _overwritten(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(600)
        file.write(b"tampered")


def _cut(path: Path) -> None:
    os.truncate(path, 100)


def _replaced(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/passwd")


DAMAGES: dict[str, Damage] = {"overwritten": _overwritten, "cut": _cut, "gone": os.unlink, "a link": _replaced}


async def _captured(engine: Engine) -> tuple[SnapshotId, Path]:
    source = await engine.backend.sandboxes.create(SPEC)
    ref = await engine.backend.snapshots.capture(source.id, SnapshotOptions())
    [file] = (engine.node.snapshots._directory / ref.id).iterdir()
    os.utime(file, ns=(0, 0))  # as if it was written long ago: some kernels give two writes in a tick one time
    return ref.id, file


@pytest.mark.parametrize("name", DAMAGES)
async def test_a_snapshot_that_is_not_what_was_written_is_not_restored(engine: Engine, name: str) -> None:
    snapshot_id, file = await _captured(engine)
    await engine.backend.snapshots.restore(snapshot_id, RestoreOptions())
    DAMAGES[name](file)
    with pytest.raises(SnapshotIntegrityFailure, match="is damaged") as refused:
        await engine.backend.snapshots.restore(snapshot_id, RestoreOptions())
    assert refused.value.snapshot_id == snapshot_id
    assert str(file.parent.parent) not in str(refused.value)
    assert len(list(engine.node.roster)) == 2


@pytest.mark.parametrize("name", DAMAGES)
async def test_a_snapshot_that_is_not_what_was_written_is_not_exported(engine: Engine, name: str) -> None:
    snapshot_id, file = await _captured(engine)
    DAMAGES[name](file)
    with pytest.raises(SnapshotIntegrityFailure, match="is damaged"):
        await engine.backend.snapshots.export_archive(snapshot_id)


@pytest.mark.parametrize("name", DAMAGES)
async def test_an_archive_is_not_sealed_when_its_files_change_while_they_are_read(engine: Engine, name: str) -> None:
    snapshot_id, file = await _captured(engine)
    archive = await engine.backend.snapshots.export_archive(snapshot_id)
    DAMAGES[name](file)
    with pytest.raises(SnapshotIntegrityFailure, match="is damaged"):
        async for _ in archive.chunks:
            pass


async def test_the_files_are_read_once_by_a_later_server_and_by_their_own_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []

    def counted(directory: Path) -> SnapshotIntegrity:
        read.append(directory)
        return captured_files_integrity(directory)

    captured_files_integrity = captured_files.integrity
    monkeypatch.setattr(captured_files, "integrity", counted)
    async with engine_over(tmp_path / "state") as engine:
        source = await engine.backend.sandboxes.create(SPEC)
        ref = await engine.backend.snapshots.capture(source.id, SnapshotOptions())
        for _ in range(2):
            await engine.backend.snapshots.restore(ref.id, RestoreOptions())
        assert len(read) == 1  # when it was written
    async with engine_over(tmp_path / "state") as engine:
        for _ in range(2):
            await engine.backend.snapshots.restore(ref.id, RestoreOptions())
        assert len(read) == 2


class _GoesOn(MemoryDriver):
    """One whose captures are said to be of whole machines."""

    @property
    def captures(self) -> SnapshotKind:
        return SnapshotKind.CONTINUATION


async def test_files_alone_are_refused_where_a_capture_is_of_the_whole_machine(tmp_path: Path) -> None:
    async with engine_over(tmp_path / "state", driver=_GoesOn()) as engine:
        source = await engine.backend.sandboxes.create(SPEC)
        with pytest.raises(UnsupportedCapability, match="whose programs go on"):
            await engine.backend.snapshots.capture(source.id, SnapshotOptions(kind=SnapshotKind.FILESYSTEM))
        ref = await engine.backend.snapshots.capture(source.id, SnapshotOptions(kind=SnapshotKind.CONTINUATION))
        assert ref.kind is SnapshotKind.CONTINUATION


async def test_who_asks_and_leaves_has_no_files_read_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with engine_over(tmp_path / "state") as engine:
        snapshot_id, _ = await _captured(engine)
    reading, go = [], threading.Event()

    def slow(directory: Path) -> SnapshotIntegrity:
        reading.append(directory)
        go.wait(10)
        return captured_files_integrity(directory)

    captured_files_integrity = captured_files.integrity
    async with engine_over(tmp_path / "state") as engine, children() as clients:
        monkeypatch.setattr(captured_files, "integrity", slow)
        for _ in range(5):
            client = clients.start(engine.backend.snapshots.restore(snapshot_id, RestoreOptions()), name="restore")
            async with asyncio.timeout(5):
                while not reading:  # noqa: ASYNC110 — a thread's doing
                    await asyncio.sleep(0.002)
            client.cancel()
            await asyncio.wait({client})
        go.set()
        await engine.backend.snapshots.restore(snapshot_id, RestoreOptions())
        assert len(reading) == 1
