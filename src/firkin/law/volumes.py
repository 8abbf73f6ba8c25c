"""Volumes: named disks that outlive sandboxes, mounted in several at once, with files that can be reached from outside.

Owners of files on a volume are the ids that programs inside see: root is 0, the
default user 1000. A volume has its size for good; the kernel keeps it to that.
"""

from __future__ import annotations

import posixpath
from collections.abc import AsyncIterable, AsyncIterator, Collection, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import PurePosixPath
from typing import Protocol, Self

from firkin.law.errors import InvalidReason, InvalidSpec
from firkin.law.files import MAX_PATH_BYTES, FileType
from firkin.law.ids import VolumeId, VolumeName

MAX_MOUNTS = 16
MOST_ID = 65535  # a sandbox has this many ids; a higher one would be nobody's inside
_RESERVED = ("/proc", "/sys", "/dev", "/.firkin")
_WRITTEN_AT_START = "/etc"  # host name, hosts, machine id and resolver are written there in each sandbox's own name


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeMount:
    """The volume `name` of the sandbox's owner at `path`: absolute, clean, and hiding nothing of the kernel's."""

    name: str
    path: str
    read_only: bool = False

    def __post_init__(self) -> None:
        VolumeName(self.name)
        if not self.path.startswith("/") or "\0" in self.path or len(self.path.encode(errors="replace")) > 1024:
            raise _misplaced(self.path, "it must be an absolute path of at most 1024 bytes")
        if posixpath.normpath(self.path) != self.path or self.path.startswith("//"):
            raise _misplaced(self.path, "it must be clean: no '.', '..', double slash or slash at the end")
        if self.path == "/":
            raise _misplaced(self.path, "it would hide the whole sandbox")
        if self.path == _WRITTEN_AT_START:
            raise _misplaced(self.path, "each sandbox writes its own name there; mount at a folder below it")
        for place in _RESERVED:
            if _within(self.path, place):
                raise _misplaced(self.path, f"{place} is the sandbox's own")


def check_mounts(mounts: Sequence[VolumeMount]) -> None:
    """What must hold of all volumes of one sandbox together. Raises `InvalidSpec`."""
    if len(mounts) > MAX_MOUNTS:
        raise _wrong(f"{len(mounts)} volumes were asked for; at most {MAX_MOUNTS} can be mounted in one sandbox")
    for number, mount in enumerate(mounts):
        for other in mounts[:number]:
            if mount.path == other.path:
                raise _wrong(f"two volumes are to be mounted at {mount.path!r}; give each a path of its own")
            if mount.name == other.name:
                raise _wrong(f"volume {mount.name!r} is to be mounted twice; mount it once")
            if _within(mount.path, other.path) or _within(other.path, mount.path):
                raise _wrong(f"{mount.path!r} and {other.path!r} lie in each other; mount volumes beside each other")


def _within(path: str, place: str) -> bool:
    return path == place or path.startswith(place + "/")


def _misplaced(path: str, why: str) -> InvalidSpec:
    detail = f"a volume cannot be mounted at {path[:128]!r}: {why}"
    return InvalidSpec("check volume mounts", InvalidReason.INVALID_PATH, detail)


def _wrong(detail: str) -> InvalidSpec:
    return InvalidSpec("check volume mounts", InvalidReason.INVALID_VOLUME, detail)


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeSpec:
    """`name` is unique for its `owner`. `size_bytes` None is what the operator set."""

    name: VolumeName
    owner: str = ""
    size_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeInfo:
    id: VolumeId
    name: VolumeName
    owner: str
    size_bytes: int
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeUsage:
    """What files can take in all, and what they take. The volume's own tables are not counted."""

    total_bytes: int
    used_bytes: int


class VolumePath(str):
    """A clean absolute path inside a volume, made from any text: ``..`` stops at the volume's root.

    Raises `InvalidSpec` (`INVALID_PATH`) for a NUL character and for more than 4,095 bytes.
    """

    __slots__ = ()

    def __new__(cls, text: str) -> Self:
        if "\0" in text:
            raise InvalidSpec("check path", InvalidReason.INVALID_PATH, "the path contains a NUL character")
        if len(text.encode("utf-8", "surrogateescape")) > MAX_PATH_BYTES:
            detail = f"the path is longer than {MAX_PATH_BYTES} bytes"
            raise InvalidSpec("check path", InvalidReason.INVALID_PATH, detail)
        return super().__new__(cls, posixpath.normpath("/" + text.lstrip("/")))

    @property
    def name(self) -> str:
        return PurePosixPath(self).name or "/"

    def below(self, name: str) -> VolumePath:
        return VolumePath(posixpath.join(self, name))


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeEntry:
    """One name on a volume, never followed. `target`: what a symlink says; `mode`: the twelve permission bits."""

    path: VolumePath
    file_type: FileType
    size_bytes: int
    mode: int
    uid: int
    gid: int
    accessed_at_ns: int
    modified_at_ns: int
    changed_at_ns: int
    target: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeAttributes:
    """Owner and mode to give. None leaves what there is; for something new that is its directory's owner."""

    uid: int | None = None
    gid: int | None = None
    mode: int | None = None

    def __post_init__(self) -> None:
        for name, value, most in (("uid", self.uid, MOST_ID), ("gid", self.gid, MOST_ID), ("mode", self.mode, 0o7777)):
            if value is not None and not 0 <= value <= most:
                raise _wrong(f"{name} is {value}; it must be from 0 to {most}")


class VolumeFiles(Protocol):
    """The files of volumes, from outside. What programs inside plant is never followed out of the volume.

    Raises `NotFound` (`VOLUME` or `FILE`), `AlreadyExists` and `FilesystemFailure`.
    """

    async def stat(self, volume_id: VolumeId, path: VolumePath) -> VolumeEntry: ...

    async def list(self, volume_id: VolumeId, path: VolumePath, *, depth: int = 1) -> Sequence[VolumeEntry]:
        """What lies in the directory, and in those below it down to `depth`, in name order."""
        ...

    async def change(self, volume_id: VolumeId, path: VolumePath, wishes: VolumeAttributes) -> VolumeEntry: ...

    async def remove(self, volume_id: VolumeId, path: VolumePath) -> None:
        """A directory goes with all that is in it; of the volume's root only the content."""
        ...

    async def make_directory(
        self, volume_id: VolumeId, path: VolumePath, wishes: VolumeAttributes, *, force: bool = False
    ) -> VolumeEntry:
        """With `force` missing parents are made, and a directory that is there already is no error."""
        ...

    async def read(self, volume_id: VolumeId, path: VolumePath) -> tuple[VolumeEntry, AsyncIterator[bytes]]:
        """A regular file's entry and its bytes. Closing the iterator ends the read."""
        ...

    async def write(
        self,
        volume_id: VolumeId,
        path: VolumePath,
        data: AsyncIterable[bytes],
        wishes: VolumeAttributes,
        *,
        force: bool = False,
    ) -> VolumeEntry:
        """Durable and whole, or not there at all. With `force` missing directories are made."""
        ...

    async def export_tar(self, volume_id: VolumeId, path: VolumePath) -> AsyncIterator[bytes]:
        """A file, or a directory's content, as a tar with modes, owners, times, symlinks and hard links."""
        ...

    async def import_tar(self, volume_id: VolumeId, path: VolumePath, data: AsyncIterable[bytes]) -> int:
        """Unpack a tar into a directory, which is made if it is missing; how many entries there were.

        `InvalidSpec` for what is no tar or would leave the directory. What was unpacked before stays.
        """
        ...


class VolumeControl(Protocol):
    """Volumes by id. Whose they are is for the front end to check."""

    @property
    def files(self) -> VolumeFiles: ...

    async def create(self, spec: VolumeSpec) -> VolumeInfo:
        """`AlreadyExists` when the owner has one of that name."""
        ...

    async def get(self, volume_id: VolumeId) -> VolumeInfo: ...

    async def list(self, owner: str | None = None) -> Sequence[VolumeInfo]:
        """Those of `owner`, or everybody's; the oldest first."""
        ...

    async def usage(self, volume_id: VolumeId) -> VolumeUsage: ...

    async def delete(self, volume_id: VolumeId) -> None:
        """`NotFound`; `WrongState` while a sandbox that runs or is paused has it mounted."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class BootVolume:
    """A volume to mount in an instance."""

    volume_id: VolumeId
    path: str
    read_only: bool = False


class VolumeKeeper(Protocol):
    """The part of a driver that keeps volumes; those of a `BootPlan` are mounted by `Driver.boot`."""

    async def make(self, volume_id: VolumeId, size_bytes: int) -> None:
        """An empty volume, whose root belongs to the default user. On failure nothing of it is left."""
        ...

    def opened(self, volume_id: VolumeId) -> AbstractAsyncContextManager[int]:
        """A descriptor of its root directory for the length of a block. `NotFound` when there is no such volume."""
        ...

    async def remove(self, volume_id: VolumeId) -> None:
        """Idempotent. Whoever still has it open keeps it until he is done."""
        ...

    async def kept(self) -> Collection[VolumeId]:
        """Every whole volume that is there. What an interrupted `make` left is removed by this."""
        ...
