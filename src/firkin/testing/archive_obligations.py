"""Obligations of a backend: a snapshot travels as an archive and arrives whole, or not at all."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

import pytest

from firkin.law.backend import ProcessControl, SandboxBackend, SnapshotControl
from firkin.law.capabilities import Capabilities, CapabilityName
from firkin.law.errors import (
    AlreadyExists,
    NotFound,
    SnapshotIntegrityFailure,
)
from firkin.law.ids import SnapshotId
from firkin.law.sandboxes import Never, SandboxInfo
from firkin.law.snapshots import (
    RestoreOptions,
    SnapshotArchive,
    SnapshotInfo,
    SnapshotIntegrity,
    SnapshotOptions,
)
from firkin.testing.backend_suite import failures, outcomes, said
from firkin.testing.snapshot_obligations import SnapshotSuite

_FOREVER = RestoreOptions(deadline=Never())
_ARRIVED = SnapshotId("arrived")


@dataclass(frozen=True, slots=True)
class _Exported:
    """An archive that has been read whole, and the record of what it was made of."""

    info: SnapshotInfo
    media_type: str
    data: bytes
    integrity: SnapshotIntegrity | None

    def archive(self, data: bytes | None = None, *, piece: int = 65536) -> SnapshotArchive:
        return SnapshotArchive(
            media_type=self.media_type,
            chunks=_pieces(self.data if data is None else data, piece),
            integrity=self.integrity,
        )


async def _pieces(data: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def _broken_off(data: bytes) -> AsyncIterator[bytes]:
    yield data
    raise ConnectionResetError("the sender went away")


class ArchiveObligations(SnapshotSuite):
    @pytest.fixture
    def archives(self, backend: SandboxBackend, capabilities: Capabilities) -> SnapshotControl:
        for name in (CapabilityName.SNAPSHOT_EXPORT, CapabilityName.SNAPSHOT_IMPORT):
            if not capabilities.supports(name):
                pytest.skip(f"{name.value}: {capabilities.refusal(name)}")
        return self.snapshots_of(backend, capabilities)

    async def _exported(self, archives: SnapshotControl, processes: ProcessControl, sandbox: SandboxInfo) -> _Exported:
        await said(processes, sandbox.id, "echo kept > /tmp/kept")
        ref = await archives.capture(sandbox.id, SnapshotOptions(name="original", metadata={"k": "v"}, owner="ann"))
        archive = await archives.export_archive(ref.id)
        data = b"".join([chunk async for chunk in archive.chunks])
        return _Exported(await archives.get(ref.id), archive.media_type, data, archive.integrity)

    async def _refused(self, archives: SnapshotControl, archive: SnapshotArchive, why: str) -> None:
        """It must be refused as damaged and leave no trace."""
        before = await self.ids(archives)
        [answer] = await outcomes(archives.import_archive(_ARRIVED, archive))
        assert isinstance(answer, SnapshotIntegrityFailure), (why, answer)
        assert await self.ids(archives) == before
        with pytest.raises(NotFound):
            await archives.get(_ARRIVED)

    async def test_an_archive_is_restored_under_another_id(
        self, archives: SnapshotControl, processes: ProcessControl, sandbox: SandboxInfo
    ) -> None:
        exported = await self._exported(archives, processes, sandbox)
        assert exported.integrity == exported.info.integrity
        ref = await archives.import_archive(_ARRIVED, exported.archive())
        assert (ref.id, ref.kind) == (_ARRIVED, exported.info.kind)
        info = await archives.get(_ARRIVED)
        assert (info.integrity, info.resources, info.env) == (
            exported.info.integrity,
            exported.info.resources,
            exported.info.env,
        )
        assert (info.metadata, info.driver) == (exported.info.metadata, exported.info.driver)
        await archives.delete(exported.info.id)
        twin = await archives.restore(_ARRIVED, _FOREVER)
        assert await said(processes, twin.id, "cat /tmp/kept") == "kept\n"

    async def test_an_archive_may_come_in_pieces_of_any_size(
        self, archives: SnapshotControl, processes: ProcessControl, sandbox: SandboxInfo
    ) -> None:
        exported = await self._exported(archives, processes, sandbox)
        for number, piece in enumerate((511, 4099, len(exported.data))):
            await archives.import_archive(SnapshotId(f"arrived{number}"), exported.archive(piece=piece))
        assert len(await self.ids(archives)) == 4

    async def test_an_import_has_the_name_and_owner_that_it_is_given(
        self, archives: SnapshotControl, processes: ProcessControl, sandbox: SandboxInfo
    ) -> None:
        exported = await self._exported(archives, processes, sandbox)
        options = SnapshotOptions(name="imported", owner="bob", labels={"note": "x"}, metadata={"own": "yes"})
        await archives.import_archive(_ARRIVED, exported.archive(), options)
        info = await archives.get(_ARRIVED)
        assert (info.name, info.owner, info.labels, info.metadata) == ("imported", "bob", {"note": "x"}, {"own": "yes"})
        again = SnapshotOptions(name="imported", owner="bob")
        with pytest.raises(AlreadyExists):
            await archives.import_archive(SnapshotId("again"), exported.archive(), again)

    async def test_an_id_in_use_is_refused(
        self, archives: SnapshotControl, processes: ProcessControl, sandbox: SandboxInfo
    ) -> None:
        exported = await self._exported(archives, processes, sandbox)
        with pytest.raises(AlreadyExists):
            await archives.import_archive(exported.info.id, exported.archive())
        answers = await outcomes(*(archives.import_archive(_ARRIVED, exported.archive()) for _ in range(3)))
        assert [type(failure) for failure in failures(answers)] == [AlreadyExists] * 2
        assert await self.ids(archives) == {exported.info.id, _ARRIVED}

    async def test_a_flipped_byte_is_found_wherever_it_is(
        self, archives: SnapshotControl, processes: ProcessControl, sandbox: SandboxInfo
    ) -> None:
        exported = await self._exported(archives, processes, sandbox)
        last = len(exported.data) - 1
        for position in sorted({0, 200, 600, 1100, *(last * part // 8 for part in range(1, 8)), last - 1500, last}):
            data = bytearray(exported.data)
            data[position] ^= 0x01
            await self._refused(archives, exported.archive(bytes(data)), f"byte {position} of {last + 1}")

    async def test_a_truncated_or_lengthened_archive_is_refused(
        self, archives: SnapshotControl, processes: ProcessControl, sandbox: SandboxInfo
    ) -> None:
        exported = await self._exported(archives, processes, sandbox)
        length = len(exported.data)
        for kept in (0, 1, 511, 512, length // 3, length // 2, length - 1024, length - 1):
            await self._refused(archives, exported.archive(exported.data[:kept]), f"{kept} of {length} bytes")
        await self._refused(archives, exported.archive(exported.data + b"more"), "lengthened")
        await self._refused(archives, exported.archive(exported.data * 2), "twice")
        await self._refused(archives, exported.archive(b"\xff" * 5000), "noise")

    async def test_a_digest_that_the_caller_knows_is_held_against_the_archive(
        self, archives: SnapshotControl, processes: ProcessControl, sandbox: SandboxInfo
    ) -> None:
        exported = await self._exported(archives, processes, sandbox)
        assert exported.integrity is not None
        for wrong in (
            SnapshotIntegrity("0" * 64, exported.integrity.size_bytes),
            SnapshotIntegrity(exported.integrity.sha256, exported.integrity.size_bytes + 1),
        ):
            await self._refused(archives, replace(exported, integrity=wrong).archive(), "another digest")
        await archives.import_archive(_ARRIVED, replace(exported, integrity=None).archive())

    async def test_another_kind_of_archive_is_refused(
        self, archives: SnapshotControl, processes: ProcessControl, sandbox: SandboxInfo
    ) -> None:
        exported = await self._exported(archives, processes, sandbox)
        archive = replace(exported, media_type="application/zip").archive()
        await self._refused(archives, archive, "another media type")

    async def test_a_sender_that_goes_away_leaves_nothing(
        self, archives: SnapshotControl, processes: ProcessControl, sandbox: SandboxInfo
    ) -> None:
        exported = await self._exported(archives, processes, sandbox)
        half = exported.data[: len(exported.data) // 2]
        broken = SnapshotArchive(media_type=exported.media_type, chunks=_broken_off(half), integrity=exported.integrity)
        [answer] = await outcomes(archives.import_archive(_ARRIVED, broken))
        assert isinstance(answer, Exception)
        assert await self.ids(archives) == {exported.info.id}
        await archives.import_archive(_ARRIVED, exported.archive())

    async def test_an_export_that_nobody_reads_to_its_end_holds_nothing_up(
        self, archives: SnapshotControl, processes: ProcessControl, sandbox: SandboxInfo
    ) -> None:
        exported = await self._exported(archives, processes, sandbox)
        archive = await archives.export_archive(exported.info.id)
        assert await anext(archive.chunks)
        await archives.delete(exported.info.id)
        rest = [chunk async for chunk in archive.chunks]  # deleted while it is read: read to its end all the same
        assert rest
        unread = await archives.capture(sandbox.id, SnapshotOptions())
        await archives.export_archive(unread.id)
        await archives.delete(unread.id)
        assert await self.ids(archives) == set()
        for snapshot_id in (unread.id, _ARRIVED):
            with pytest.raises(NotFound):
                await archives.export_archive(snapshot_id)
