"""The stream of captured files, and archives of them."""

from __future__ import annotations

import asyncio
import os
import tarfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from firkin.engine import captured_files
from firkin.engine.captured_files import BLOCK, StreamWriter
from firkin.law.errors import AlreadyExists, NotFound, SnapshotIntegrityFailure, UnsupportedCapability
from firkin.law.ids import SnapshotId
from firkin.law.sandboxes import DeleteOptions
from firkin.law.snapshots import RestoreOptions, SnapshotArchive, SnapshotFilter, SnapshotOptions
from tests.engine.conftest import SPEC, Engine

GIB = 1 << 30


def _written(directory: Path, pieces: Iterator[bytes]) -> StreamWriter:
    directory.mkdir()
    writer = StreamWriter(directory, most_bytes=4 * GIB)
    try:
        for piece in pieces:
            writer.feed(piece)
    finally:
        writer.close()
    return writer


def _sparse(path: Path, size: int, at: dict[int, bytes]) -> None:
    with path.open("wb") as file:
        file.truncate(size)
        for offset, data in at.items():
            file.seek(offset)
            file.write(data)


def test_a_sparse_file_comes_back_whole_and_sparse(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    _sparse(source / "disk.img", 2 * GIB + 5, {0: b"head", GIB: b"middle", 2 * GIB: b"tail!"})
    (source / "empty").touch()
    writer = _written(tmp_path / "copy", captured_files.stream(source))
    assert writer.complete
    assert captured_files.integrity(tmp_path / "copy") == captured_files.integrity(source)
    assert (writer.digest.hexdigest(), writer.size) == (
        captured_files.integrity(source).sha256,
        captured_files.integrity(source).size_bytes,
    )
    copied = (tmp_path / "copy" / "disk.img").stat()
    assert copied.st_size == 2 * GIB + 5
    assert copied.st_blocks * 512 < 8 * BLOCK


def test_written_zeros_count_as_holes(tmp_path: Path) -> None:
    for name, data in (("written", bytes(3 * BLOCK)), ("hole", b"")):
        (tmp_path / name).mkdir()
        _sparse(tmp_path / name / "f", 3 * BLOCK, {0: data})
    assert captured_files.integrity(tmp_path / "written") == captured_files.integrity(tmp_path / "hole")


@pytest.mark.thorough
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    data=st.lists(st.tuples(st.integers(0, 6 * BLOCK), st.binary(min_size=1, max_size=300)), max_size=6),
    cut=st.integers(1, 3 * BLOCK),
)
def test_pieces_of_any_size_say_the_same(
    tmp_path_factory: pytest.TempPathFactory, data: list[tuple[int, bytes]], cut: int
) -> None:
    folder = tmp_path_factory.mktemp("pieces")
    (folder / "a").mkdir()
    _sparse(folder / "a" / "f", 7 * BLOCK, dict(data))
    whole = b"".join(captured_files.stream(folder / "a"))
    writer = _written(folder / "b", (whole[at : at + cut] for at in range(0, len(whole), cut)))
    assert writer.complete
    assert (folder / "b" / "f").read_bytes() == (folder / "a" / "f").read_bytes()


@pytest.mark.parametrize(
    "bad",
    [
        b"\x00\x00",
        b"\x00\x02..\x00\x00\x00\x00\x00\x00\x00\x01",
        b"\x00\x03a/b\x00\x00\x00\x00\x00\x00\x00\x01",
        b"\x00\x01a\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x00\x01a\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x02",
        b"\x00\x01a\x00\x00\x00\x00\x00\x00\x00\x00" + bytes(8) + b"\x00\x01a\x00\x00\x00\x00\x00\x00\x00\x00",
        b"\xff\xff" + b"a" * 70_000,
    ],
    ids=["no name", "dots", "slash", "huge", "outside", "twice", "long name"],
)
def test_a_hostile_stream_is_refused(tmp_path: Path, bad: bytes) -> None:
    with pytest.raises(ValueError, match=r"allowed|outside|too long"):
        _written(tmp_path / "in", iter([bad]))
    assert os.listdir(tmp_path) == ["in"]


def test_a_stream_that_breaks_off_is_not_complete(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    _sparse(tmp_path / "a" / "f", BLOCK, {0: b"x"})
    whole = b"".join(captured_files.stream(tmp_path / "a"))
    for at in (1, 5, 20, len(whole) - 1):
        assert not _written(tmp_path / f"cut{at}", iter([whole[:at]])).complete


async def _chunks(data: bytes, size: int = 7777) -> AsyncIterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


async def _exported(engine: Engine, snapshot_id: SnapshotId) -> SnapshotArchive:
    return await engine.backend.snapshots.export_archive(snapshot_id)


async def _collected(archive: SnapshotArchive) -> bytes:
    return b"".join([chunk async for chunk in archive.chunks])


async def test_an_archive_becomes_a_snapshot_again(engine: Engine) -> None:
    source = await engine.backend.sandboxes.create(SPEC)
    await engine.backend.filesystems.mkdir(source.id, "/home/user/made")
    ref = await engine.backend.snapshots.capture(source.id, SnapshotOptions(metadata={"k": "v"}))
    await engine.backend.sandboxes.delete(source.id, DeleteOptions(force=True))
    archive = await _exported(engine, ref.id)
    data = await _collected(archive)
    other = SnapshotId("arrived")
    kept = await engine.backend.snapshots.import_archive(
        other, SnapshotArchive(media_type=archive.media_type, chunks=_chunks(data), integrity=archive.integrity)
    )
    assert kept.id == other
    info = await engine.backend.snapshots.get(other)
    assert (info.metadata, info.integrity, info.source_sandbox_id) == ({"k": "v"}, archive.integrity, source.id)
    restored = await engine.backend.snapshots.restore(other, RestoreOptions())
    assert (await engine.backend.filesystems.stat(restored.id, "/home/user/made")).name == "made"
    with pytest.raises(AlreadyExists):
        await engine.backend.snapshots.import_archive(
            other, SnapshotArchive(media_type=archive.media_type, chunks=_chunks(data))
        )


@pytest.mark.thorough
@pytest.mark.parametrize("where", [0.01, 0.5, 0.9])
async def test_a_damaged_archive_leaves_nothing(engine: Engine, where: float, tmp_path: Path) -> None:
    source = await engine.backend.sandboxes.create(SPEC)
    ref = await engine.backend.snapshots.capture(source.id, SnapshotOptions())
    archive = await _exported(engine, ref.id)
    data = bytearray(await _collected(archive))
    data[int(len(data) * where)] ^= 0xFF
    for broken in (bytes(data), bytes(data[: len(data) // 2]), b"", b"x" * 5000):
        with pytest.raises(SnapshotIntegrityFailure):
            await engine.backend.snapshots.import_archive(
                SnapshotId("broken"), SnapshotArchive(media_type=archive.media_type, chunks=_chunks(broken))
            )
    with pytest.raises(NotFound):
        await engine.backend.snapshots.get(SnapshotId("broken"))
    assert len(await engine.backend.snapshots.list(SnapshotFilter())) == 1
    assert sorted(path.name for path in (tmp_path / "state" / "snapshots").iterdir()) == [ref.id]


async def test_an_archive_without_its_template_is_refused(engine: Engine) -> None:
    source = await engine.backend.sandboxes.create(SPEC)
    ref = await engine.backend.snapshots.capture(source.id, SnapshotOptions())
    archive = await _exported(engine, ref.id)
    data = await _collected(archive)
    engine.node.templates._known.clear()
    with pytest.raises(NotFound, match="prepare that template"):
        await engine.backend.snapshots.import_archive(
            SnapshotId("elsewhere"), SnapshotArchive(media_type=archive.media_type, chunks=_chunks(data))
        )


async def test_a_changed_manifest_is_noticed(engine: Engine) -> None:
    source = await engine.backend.sandboxes.create(SPEC)
    ref = await engine.backend.snapshots.capture(source.id, SnapshotOptions(metadata={"k": "before"}))
    archive = await _exported(engine, ref.id)
    data = (await _collected(archive)).replace(b"before", b"after!", 1)
    with pytest.raises(SnapshotIntegrityFailure, match="manifest"):
        await engine.backend.snapshots.import_archive(
            SnapshotId("changed"), SnapshotArchive(media_type=archive.media_type, chunks=_chunks(data))
        )


@pytest.mark.parametrize("member", ["manifest.json", "files"])
async def test_a_negative_size_is_no_size(engine: Engine, member: str) -> None:
    source = await engine.backend.sandboxes.create(SPEC)
    ref = await engine.backend.snapshots.capture(source.id, SnapshotOptions())
    archive = await _exported(engine, ref.id)
    data = await _collected(archive)
    entry = tarfile.TarInfo(member)
    entry.size = -(10**7)
    at = 0 if member == "manifest.json" else data.index(b"files\0")
    data = data[:at] + entry.tobuf(tarfile.GNU_FORMAT) + data[at + 512 :]
    async with asyncio.timeout(10):
        with pytest.raises(SnapshotIntegrityFailure, match="negative"):
            await engine.backend.snapshots.import_archive(
                SnapshotId("negative"), SnapshotArchive(media_type=archive.media_type, chunks=_chunks(data))
            )


async def test_another_kind_of_archive_is_refused(engine: Engine) -> None:
    with pytest.raises((SnapshotIntegrityFailure, UnsupportedCapability), match="media type"):
        await engine.backend.snapshots.import_archive(
            SnapshotId("zip"), SnapshotArchive(media_type="application/zip", chunks=_chunks(b"PK"))
        )
