"""Obligations of a backend that keeps volumes: what is on them is shared, outlives sandboxes, and is not lost.

A backend without volumes says so by having no control for them, and refuses a
sandbox that asks for one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from firkin.law.backend import ProcessControl, SandboxBackend, SnapshotControl
from firkin.law.capabilities import Capabilities, CapabilityName
from firkin.law.errors import AlreadyExists, FirkinError, InvalidSpec, NotFound, WrongState
from firkin.law.files import FileType
from firkin.law.ids import VolumeId, VolumeName
from firkin.law.resources import MIB
from firkin.law.sandboxes import DeleteOptions, SandboxInfo, SandboxSpec
from firkin.law.snapshots import ForkOptions, PauseOptions
from firkin.law.templates import TemplateInfo
from firkin.law.volumes import VolumeAttributes, VolumeControl, VolumeInfo, VolumeMount, VolumePath, VolumeSpec
from firkin.testing.backend_suite import BackendSuite, failures, outcomes, said

_AT = "/mnt/data"
_PLAIN = VolumeAttributes()


async def _pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def _read(volumes: VolumeControl, volume: VolumeInfo, path: str) -> bytes:
    _, body = await volumes.files.read(volume.id, VolumePath(path))
    return b"".join([piece async for piece in body])


class VolumeObligations(BackendSuite):
    @pytest.fixture
    def volumes(self, backend: SandboxBackend) -> VolumeControl:
        if backend.volumes is None:
            pytest.skip("no volumes here")
        return backend.volumes

    async def _made(self, volumes: VolumeControl, name: str = "data", owner: str = "") -> VolumeInfo:
        return await volumes.create(VolumeSpec(name=VolumeName(name), owner=owner, size_bytes=64 * MIB))

    def _with(self, template: TemplateInfo, name: str = "data", *, read_only: bool = False) -> SandboxSpec:
        return self.spec(template, volumes=(VolumeMount(name=name, path=_AT, read_only=read_only),))

    async def test_volumes_are_made_found_and_deleted(self, volumes: VolumeControl) -> None:
        one, two = await self._made(volumes, "one"), await self._made(volumes, "two", owner="ann")
        assert list(await volumes.list()) == [one, two]
        assert list(await volumes.list("ann")) == [two]
        assert await volumes.get(one.id) == one
        usage = await volumes.usage(one.id)
        assert 0 <= usage.used_bytes < usage.total_bytes <= one.size_bytes
        await volumes.delete(one.id)
        assert list(await volumes.list()) == [two]
        for attempt in (volumes.get(one.id), volumes.delete(one.id), volumes.usage(one.id)):
            with pytest.raises(NotFound):
                await attempt
        await volumes.delete(two.id)

    async def test_a_name_is_taken_once_for_an_owner(self, volumes: VolumeControl) -> None:
        answers = await outcomes(*(self._made(volumes) for _ in range(4)))
        assert [type(error) for error in failures(answers)] == [AlreadyExists] * 3
        await self._made(volumes, owner="ann")
        assert len(await volumes.list()) == 2

    async def test_an_impossible_size_is_refused(self, volumes: VolumeControl) -> None:
        for size in (0, 1, 1 << 60):
            with pytest.raises(InvalidSpec):
                await volumes.create(VolumeSpec(name=VolumeName("data"), size_bytes=size))
        assert list(await volumes.list()) == []

    async def test_sandboxes_share_what_is_on_it(
        self, backend: SandboxBackend, volumes: VolumeControl, processes: ProcessControl, template: TemplateInfo
    ) -> None:
        volume = await self._made(volumes)
        await volumes.files.write(volume.id, VolumePath("/before"), _pieces(b"a", b"b"), _PLAIN)
        one = await backend.sandboxes.create(self._with(template))
        two = await backend.sandboxes.create(self._with(template, read_only=True))
        assert one.volumes == (VolumeMount(name="data", path=_AT),)
        assert (await backend.sandboxes.inspect(two.id)).volumes[0].read_only
        assert await said(processes, one.id, f"cat {_AT}/before; echo inside > {_AT}/x") == "ab"
        assert await said(processes, two.id, f"cat {_AT}/x") == "inside\n"
        assert await said(processes, two.id, f"echo no 2>/dev/null > {_AT}/x || echo refused") == "refused\n"
        for sandbox in (one, two):
            await backend.sandboxes.delete(sandbox.id, DeleteOptions(force=True))
        assert await _read(volumes, volume, "/x") == b"inside\n"

    async def test_it_cannot_be_deleted_while_somebody_has_it(
        self, backend: SandboxBackend, volumes: VolumeControl, template: TemplateInfo
    ) -> None:
        volume = await self._made(volumes)
        sandbox = await backend.sandboxes.create(self._with(template))
        with pytest.raises(WrongState, match=sandbox.id):
            await volumes.delete(volume.id)
        if backend.pauses is not None:
            await backend.pauses.pause(sandbox.id, PauseOptions(keep_memory=False))
            with pytest.raises(WrongState):
                await volumes.delete(volume.id)
        await backend.sandboxes.delete(sandbox.id, DeleteOptions(force=True))
        await volumes.delete(volume.id)

    async def test_a_create_and_a_delete_at_once_end_in_one_or_the_other(
        self, backend: SandboxBackend, volumes: VolumeControl, processes: ProcessControl, template: TemplateInfo
    ) -> None:
        for number in range(5):
            volume = await self._made(volumes, f"v{number}")
            spec = self._with(template, volume.name)
            made, deleted = await outcomes(backend.sandboxes.create(spec), volumes.delete(volume.id))
            if isinstance(made, SandboxInfo):
                assert isinstance(deleted, WrongState)
                await said(processes, made.id, f"touch {_AT}/x")
                await backend.sandboxes.delete(made.id, DeleteOptions(force=True))
                await volumes.delete(volume.id)
            else:
                assert isinstance(made, InvalidSpec), made
                assert deleted is None

    async def test_an_unknown_volume_and_anothers_make_no_sandbox(
        self, backend: SandboxBackend, volumes: VolumeControl, template: TemplateInfo
    ) -> None:
        await self._made(volumes, owner="ann")
        for name in ("data", "nobody"):
            with pytest.raises(InvalidSpec, match="there is no volume"):
                await backend.sandboxes.create(self._with(template, name))
        assert await self.leftovers(backend) == []

    async def test_it_comes_back_with_a_resumed_sandbox_and_goes_on_with_a_fork(
        self,
        backend: SandboxBackend,
        volumes: VolumeControl,
        processes: ProcessControl,
        capabilities: Capabilities,
        template: TemplateInfo,
    ) -> None:
        await self._made(volumes)
        sandbox = await backend.sandboxes.create(self._with(template))
        await said(processes, sandbox.id, f"echo 1 > {_AT}/x")
        if backend.pauses is not None:
            for keep_memory in (True, False):
                await backend.pauses.pause(sandbox.id, PauseOptions(keep_memory=keep_memory))
                await backend.pauses.resume(sandbox.id)
                assert await said(processes, sandbox.id, f"cat {_AT}/x") == "1\n"
        if capabilities.supports(CapabilityName.SNAPSHOT_CAPTURE):
            snapshots: SnapshotControl = backend.snapshots
            [fork] = await snapshots.fork(sandbox.id, ForkOptions())
            assert isinstance(fork, SandboxInfo), fork
            assert fork.volumes == sandbox.volumes
            await said(processes, fork.id, f"echo 2 >> {_AT}/x")
            assert await said(processes, sandbox.id, f"cat {_AT}/x") == "1\n2\n"


class VolumeFileObligations(VolumeObligations):
    @pytest_asyncio.fixture
    async def volume(self, volumes: VolumeControl) -> VolumeInfo:
        return await self._made(volumes)

    async def test_a_file_has_the_bytes_owner_and_mode_it_was_given(
        self, volumes: VolumeControl, volume: VolumeInfo
    ) -> None:
        wishes = VolumeAttributes(uid=7, gid=8, mode=0o640)
        path = VolumePath("/a/b")
        with pytest.raises(NotFound):
            await volumes.files.write(volume.id, path, _pieces(b"x"), wishes)
        made = await volumes.files.write(volume.id, path, _pieces(b"x" * 3_000_000), wishes, force=True)
        assert made == await volumes.files.stat(volume.id, path)
        assert (made.file_type, made.size_bytes) == (FileType.FILE, 3_000_000)
        assert (made.uid, made.gid, made.mode) == (7, 8, 0o640)
        assert await _read(volumes, volume, "/a/b") == b"x" * 3_000_000
        changed = await volumes.files.change(volume.id, path, VolumeAttributes(mode=0o600))
        assert (changed.uid, changed.mode) == (7, 0o600)

    async def test_a_write_that_fails_keeps_what_was_there(self, volumes: VolumeControl, volume: VolumeInfo) -> None:
        async def broken() -> AsyncIterator[bytes]:
            yield b"new" * 1_000_000
            raise ConnectionResetError("the client has gone")

        await volumes.files.write(volume.id, VolumePath("/x"), _pieces(b"old"), _PLAIN)
        for path in ("/x", "/y"):
            with pytest.raises((FirkinError, ConnectionResetError)):
                await volumes.files.write(volume.id, VolumePath(path), broken(), _PLAIN)
        assert await _read(volumes, volume, "/x") == b"old"
        assert [entry.path for entry in await volumes.files.list(volume.id, VolumePath("/"))] == ["/x"]

    async def test_directories_are_made_listed_and_removed(self, volumes: VolumeControl, volume: VolumeInfo) -> None:
        files = volumes.files
        await files.make_directory(volume.id, VolumePath("/d/e"), _PLAIN, force=True)
        await files.write(volume.id, VolumePath("/d/e/f"), _pieces(), _PLAIN)
        with pytest.raises(AlreadyExists):
            await files.make_directory(volume.id, VolumePath("/d"), _PLAIN)
        below = await files.list(volume.id, VolumePath("/"), depth=3)
        assert [entry.path for entry in below] == ["/d", "/d/e", "/d/e/f"]
        await files.remove(volume.id, VolumePath("/d"))
        assert list(await files.list(volume.id, VolumePath("/"))) == []

    async def test_an_archive_holds_it_all(self, volumes: VolumeControl, volume: VolumeInfo) -> None:
        files = volumes.files
        await files.write(volume.id, VolumePath("/d/f"), _pieces(b"data"), VolumeAttributes(mode=0o600), force=True)
        pieces = [piece async for piece in await files.export_tar(volume.id, VolumePath("/d"))]
        assert await files.import_tar(volume.id, VolumePath("/copy"), _pieces(*pieces)) == 2
        assert await _read(volumes, volume, "/copy/f") == b"data"
        assert (await files.stat(volume.id, VolumePath("/copy/f"))).mode == 0o600
        with pytest.raises(InvalidSpec):
            await files.import_tar(volume.id, VolumePath("/copy"), _pieces(b"".join(pieces)[:700]))

    async def test_an_unknown_volume_has_no_files(self, volumes: VolumeControl) -> None:
        with pytest.raises(NotFound):
            await volumes.files.stat(VolumeId("vnone"), VolumePath("/"))
