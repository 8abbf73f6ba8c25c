"""The volumes of a node: which there are, and who has them mounted.

A volume is in use while a sandbox is on the roster that names it and has not ended:
nobody counts, so no count can be wrong. Looking and taking a place on the roster
are one step of the event loop, and so are looking and leaving this registry.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime

from firkin.engine.records import Records
from firkin.engine.roster import Resident, Roster
from firkin.law.capabilities import CapabilityName, Permanent
from firkin.law.errors import (
    AlreadyExists,
    InvalidReason,
    InvalidSpec,
    NotFound,
    ResourceKind,
    UnsupportedCapability,
    WrongState,
)
from firkin.law.ids import SandboxId, VolumeId, VolumeName
from firkin.law.states import SandboxState
from firkin.law.volumes import BootVolume, VolumeInfo, VolumeKeeper, VolumeMount

NO_VOLUMES = Permanent("the driver of this runtime keeps no volumes")
_MOUNTING = (SandboxState.CREATING, SandboxState.RUNNING, SandboxState.PAUSED, SandboxState.STOPPING)
MOST_OF_AN_OWNER = 1000
_Row = tuple[str, str, str, int, float]
_log = logging.getLogger("firkin.engine")


class VolumeRegistry:
    """In memory, and in the state database. `keeper` None: the driver keeps none, and none is known."""

    def __init__(self, keeper: VolumeKeeper | None, *, records: Records, roster: Roster) -> None:
        self._keeper = keeper
        self._records = records
        self._roster = roster
        self._known: dict[VolumeId, VolumeInfo] = {}
        self._arriving: set[tuple[str, str]] = set()

    async def load(self) -> None:
        """Take up what an earlier server left.

        A record is written before its image is made, and goes after it: one without an
        image is of a create or a delete that was interrupted. An image without a record is
        somebody's data whose records were lost: it is left alone.
        """
        if self._keeper is None:
            return
        rows: list[_Row] = await self._records.run(
            lambda connection: connection.execute(
                "SELECT id, owner, name, size_bytes, created_at FROM volumes"
            ).fetchall()
        )
        kept = await self._keeper.kept()
        for info in map(_info, rows):
            if info.id in kept:
                self._known[info.id] = info
            else:
                _log.warning("removed leftover=record of volume %s name=%s", info.id, info.name)
                await self.forget(info.id)
        for stranger in sorted(set(kept) - set(self._known)):
            _log.error("there is no record of it, so nobody can use it volume=%s", stranger)

    @property
    def keeper(self) -> VolumeKeeper:
        if self._keeper is None:
            raise UnsupportedCapability("use volumes", CapabilityName.RUNTIME_CREATE, NO_VOLUMES)
        return self._keeper

    def require(self, operation: str) -> None:
        """`UnsupportedCapability` where there are no volumes."""
        if self._keeper is None:
            raise UnsupportedCapability(operation, CapabilityName.RUNTIME_CREATE, NO_VOLUMES)

    def wanted(self, operation: str, owner: str, mounts: Sequence[VolumeMount]) -> tuple[BootVolume, ...]:
        """What to mount. `UnsupportedCapability` where there are no volumes, `InvalidSpec` for an unknown one."""
        if mounts:
            self.require(operation)
        return tuple(self._found(operation, owner, mount) for mount in mounts)

    def _found(self, operation: str, owner: str, mount: VolumeMount) -> BootVolume:
        info = self.named(owner, mount.name)
        if info is None:
            detail = f"there is no volume {mount.name!r}; create it first"
            raise InvalidSpec(operation, InvalidReason.MISSING_VOLUME, detail)
        return BootVolume(volume_id=info.id, path=mount.path, read_only=mount.read_only)

    def named(self, owner: str, name: str) -> VolumeInfo | None:
        return next((info for info in self._known.values() if (info.owner, info.name) == (owner, name)), None)

    def get(self, operation: str, volume_id: VolumeId) -> VolumeInfo:
        info = self._known.get(volume_id)
        if info is None:
            raise NotFound(operation, ResourceKind.VOLUME, volume_id)
        return info

    def all(self) -> list[VolumeInfo]:
        """The oldest first."""
        return sorted(self._known.values(), key=lambda info: (info.created_at, info.id))

    @contextmanager
    def naming(self, operation: str, owner: str, name: VolumeName) -> Iterator[None]:
        """Claim a name while the volume is made. `AlreadyExists` when it is in use, or about to be; `InvalidSpec`
        when the owner has as many as one may have."""
        if (owner, name) in self._arriving or self.named(owner, name) is not None:
            raise AlreadyExists(operation, ResourceKind.VOLUME, name)
        if self._count(owner) >= MOST_OF_AN_OWNER:
            detail = (
                f"there are {MOST_OF_AN_OWNER} already, which is the most that one API key can have; delete some first"
            )
            raise InvalidSpec(operation, InvalidReason.INVALID_VOLUME, detail)
        self._arriving.add((owner, name))
        try:
            yield
        finally:
            self._arriving.discard((owner, name))

    def _count(self, owner: str) -> int:
        names = {info.name for info in self._known.values() if info.owner == owner}
        return len(names | {name for arriving, name in self._arriving if arriving == owner})

    async def note(self, info: VolumeInfo) -> None:
        """Record it, to outlive a power cut. Nobody finds it before `add`."""
        row: _Row = (info.id, info.owner, info.name, info.size_bytes, info.created_at.timestamp())
        try:
            await self._records.run(
                lambda connection: connection.execute("INSERT INTO volumes VALUES (?, ?, ?, ?, ?)", row)
            )
        except sqlite3.IntegrityError:
            raise AlreadyExists("create a volume", ResourceKind.VOLUME, info.name) from None
        await self._records.settle()

    def add(self, info: VolumeInfo) -> None:
        self._known[info.id] = info

    def take_out(self, operation: str, volume_id: VolumeId) -> VolumeInfo:
        """From here on nobody can mount it. `WrongState` while somebody has it mounted."""
        info = self.get(operation, volume_id)
        users = self.users(info)
        if users:
            more = f" and {len(users) - 1} more" if len(users) > 1 else ""
            raise WrongState(operation, ResourceKind.VOLUME, info.name, f"mounted in sandbox {users[0]}{more}")
        return self._known.pop(volume_id)

    async def forget(self, volume_id: VolumeId) -> None:
        await self._records.run(lambda connection: connection.execute("DELETE FROM volumes WHERE id = ?", (volume_id,)))

    def users(self, info: VolumeInfo) -> list[SandboxId]:
        """The sandboxes that have it mounted, will have when they are resumed, or are just being made with it."""
        return [resident.id for resident in self._roster if _mounts(resident, info)]


def _mounts(resident: Resident, volume: VolumeInfo) -> bool:
    info = resident.info
    if info.owner != volume.owner or all(mount.name != volume.name for mount in info.volumes):
        return False
    return info.state in _MOUNTING or resident.instance is not None


def _info(row: _Row) -> VolumeInfo:
    volume_id, owner, name, size_bytes, created_at = row
    return VolumeInfo(
        id=VolumeId(volume_id),
        owner=owner,
        name=VolumeName(name),
        size_bytes=size_bytes,
        created_at=datetime.fromtimestamp(created_at, UTC),
    )
