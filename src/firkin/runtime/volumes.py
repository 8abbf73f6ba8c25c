"""Volumes for Python programs."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Sequence
from pathlib import Path

from firkin.law.backend import SandboxBackend
from firkin.law.capabilities import CapabilityName
from firkin.law.files import FileType
from firkin.law.ids import VolumeId, VolumeName
from firkin.law.volumes import (
    VolumeAttributes,
    VolumeControl,
    VolumeEntry,
    VolumeInfo,
    VolumePath,
    VolumeSpec,
    VolumeUsage,
)
from firkin.runtime.local_trees import pieces_of, unpack_into
from firkin.runtime.required import required

_PLAIN = VolumeAttributes()


class VolumeClient:
    """Named disks that outlive sandboxes. Mount one by `SandboxSpec.volumes`; paths here begin at its root."""

    def __init__(self, backend: SandboxBackend) -> None:
        self._backend = backend

    async def create(self, name: str, *, size_bytes: int | None = None, owner: str = "") -> VolumeInfo:
        spec = VolumeSpec(name=VolumeName(name), owner=owner, size_bytes=size_bytes)
        return await (await self._control("create a volume")).create(spec)

    async def get(self, volume_id: str) -> VolumeInfo:
        return await (await self._control("inspect a volume")).get(VolumeId(volume_id))

    async def list(self, owner: str | None = None) -> Sequence[VolumeInfo]:
        return await (await self._control("list volumes")).list(owner)

    async def usage(self, volume_id: str) -> VolumeUsage:
        return await (await self._control("measure a volume")).usage(VolumeId(volume_id))

    async def delete(self, volume_id: str) -> None:
        """`WrongState` while a sandbox that runs or is paused has it mounted."""
        await (await self._control("delete a volume")).delete(VolumeId(volume_id))

    async def stat(self, volume_id: str, path: str) -> VolumeEntry:
        control = await self._control("look at a file of a volume")
        return await control.files.stat(VolumeId(volume_id), VolumePath(path))

    async def entries(self, volume_id: str, path: str = "/", *, depth: int = 1) -> Sequence[VolumeEntry]:
        control = await self._control("list files of a volume")
        return await control.files.list(VolumeId(volume_id), VolumePath(path), depth=depth)

    async def read(self, volume_id: str, path: str) -> bytes:
        """The whole of a file; `read_stream` holds no more than a piece of it."""
        return b"".join([piece async for piece in await self.read_stream(volume_id, path)])

    async def read_stream(self, volume_id: str, path: str) -> AsyncIterator[bytes]:
        control = await self._control("read a file of a volume")
        _, body = await control.files.read(VolumeId(volume_id), VolumePath(path))
        return body

    async def write(
        self,
        volume_id: str,
        path: str,
        data: bytes | AsyncIterable[bytes],
        attributes: VolumeAttributes = _PLAIN,
    ) -> VolumeEntry:
        """Whole or not at all; missing directories are made."""
        control = await self._control("write a file of a volume")
        body = _once(data) if isinstance(data, bytes) else data
        return await control.files.write(VolumeId(volume_id), VolumePath(path), body, attributes, force=True)

    async def remove(self, volume_id: str, path: str) -> None:
        await (await self._control("remove a file of a volume")).files.remove(VolumeId(volume_id), VolumePath(path))

    async def copy_in(
        self, volume_id: str, host: Path, path: str = "/", *, owner: tuple[int, int] | None = None
    ) -> int:
        """A folder's content, or a file, into the directory `path`, with owners, modes and links. How many entries."""
        control = await self._control("copy into a volume")
        return await control.files.import_tar(VolumeId(volume_id), VolumePath(path), pieces_of(host, owner=owner))

    async def copy_out(self, volume_id: str, path: str, host: Path) -> int:
        """A directory's content into the folder `host`, or a file to `host`. How many entries there were."""
        control = await self._control("copy out of a volume")
        where = VolumePath(path)
        entry = await control.files.stat(VolumeId(volume_id), where)
        pieces = await control.files.export_tar(VolumeId(volume_id), where)
        return await place(entry.file_type is FileType.DIRECTORY, pieces, host)

    async def _control(self, operation: str) -> VolumeControl:
        return await required(self._backend, self._backend.volumes, operation, CapabilityName.RUNTIME_CREATE)


async def place(is_directory: bool, pieces: AsyncIterable[bytes], host: Path) -> int:
    """What an archive of a volume holds: a directory's content into `host`, a file to `host` or into that folder."""
    if is_directory or host.is_dir():
        return await unpack_into(host, pieces)
    return await unpack_into(host.parent, pieces, rename=host.name)


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data
