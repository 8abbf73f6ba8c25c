"""The secrets of a node, in its state database, their values sealed.

Only `values` opens them, for the egress gateway; nothing else in the engine or above has a way to.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime

from firkin.engine.clock import Clock
from firkin.engine.records import Records
from firkin.engine.sealing import CannotOpen, Seal
from firkin.law.errors import AlreadyExists, CapacityRejected, IoFailure, NotFound, ResourceKind
from firkin.law.ids import SecretId, SecretName
from firkin.law.secrets import (
    MAX_SECRETS,
    SecretInfo,
    SecretSpec,
    check_secret_metadata,
    check_secret_value,
)

_COLUMNS = "id, owner, name, version, metadata, created_at, updated_at"
_ONE = "owner = ? AND (id = ? OR name = ?)"
_Row = tuple[str, str, str, int, str, float, float]
Changed = Callable[[str], Awaitable[None]]


class SecretStore:
    """The `SecretControl` of the engine. `changed` is told an owner whose secrets are other ones from now on."""

    def __init__(self, records: Records, *, clock: Clock, server_secret: bytes) -> None:
        self._records = records
        self._clock = clock
        self._seal = Seal(server_secret)
        self.changed: Changed | None = None

    async def create(self, spec: SecretSpec) -> SecretInfo:
        """See `SecretControl.create`."""
        now = self._clock.now()
        info = SecretInfo(
            id=SecretId(f"sec_{secrets.token_hex(12)}"),
            name=spec.name,
            created_at=now,
            updated_at=now,
            owner=spec.owner,
            metadata=dict(spec.metadata),
        )
        sealed = self._seal.close(spec.value, spec.owner, spec.name)
        row = (*_row(info), sealed)
        try:
            await self._records.run(lambda connection: _insert(connection, row))
        except sqlite3.IntegrityError:
            raise AlreadyExists("create a secret", ResourceKind.SECRET, spec.name) from None
        await self._tell(spec.owner)
        return info

    async def update(
        self, owner: str, secret: str, value: str, metadata: Mapping[str, str] | None = None
    ) -> SecretInfo:
        """See `SecretControl.update`."""
        check_secret_value(value)
        check_secret_metadata(metadata or {})
        known = await self.get(owner, secret)
        sealed = self._seal.close(value, owner, known.name)
        text = json.dumps(dict(known.metadata if metadata is None else metadata))
        change = (sealed, text, self._clock.now().timestamp(), known.id)
        row: _Row | None = await self._records.run(lambda connection: _update(connection, change))
        if row is None:
            raise _missing("update a secret", secret)
        await self._tell(owner)
        return _info(row)

    async def get(self, owner: str, secret: str) -> SecretInfo:
        found: _Row | None = await self._records.run(
            lambda connection: connection.execute(
                f"SELECT {_COLUMNS} FROM secrets WHERE {_ONE}", (owner, secret, secret.lower())
            ).fetchone()
        )
        if found is None:
            raise _missing("find a secret", secret)
        return _info(found)

    async def list(self, owner: str) -> Sequence[SecretInfo]:
        rows: list[_Row] = await self._records.run(
            lambda connection: connection.execute(
                f"SELECT {_COLUMNS} FROM secrets WHERE owner = ? ORDER BY created_at DESC, id DESC", (owner,)
            ).fetchall()
        )
        return [_info(row) for row in rows]

    async def delete(self, owner: str, secret: str) -> None:
        gone: int = await self._records.run(
            lambda connection: (
                connection.execute(f"DELETE FROM secrets WHERE {_ONE}", (owner, secret, secret.lower())).rowcount
            )
        )
        if not gone:
            raise _missing("delete a secret", secret)
        await self._tell(owner)

    async def values(self, owner: str, names: Collection[str]) -> dict[str, str]:
        """The values of those that there are. `IoFailure` for one that this state folder's key does not open."""
        if not names:
            return {}
        rows: list[tuple[str, bytes]] = await self._records.run(
            lambda connection: connection.execute(
                "SELECT name, sealed FROM secrets WHERE owner = ?", (owner,)
            ).fetchall()
        )
        return {name: self._opened(owner, name, sealed) for name, sealed in rows if name in names}

    def _opened(self, owner: str, name: str, sealed: bytes) -> str:
        try:
            return self._seal.open(sealed, owner, name)
        except CannotOpen:
            why = "it was sealed with another server secret; set its value again"
            raise IoFailure("open", f"the secret {name!r}", why) from None

    async def _tell(self, owner: str) -> None:
        if self.changed is not None:
            await self.changed(owner)


def _insert(connection: sqlite3.Connection, row: tuple[object, ...]) -> None:
    (held,) = connection.execute("SELECT COUNT(*) FROM secrets WHERE owner = ?", (row[1],)).fetchone()
    if held >= MAX_SECRETS:
        raise CapacityRejected("create a secret", "room for secrets", requested=1, available=0)
    connection.execute(f"INSERT INTO secrets ({_COLUMNS}, sealed) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)


def _update(connection: sqlite3.Connection, change: tuple[object, ...]) -> _Row | None:
    row: _Row | None = connection.execute(
        "UPDATE secrets SET sealed = ?, metadata = ?, updated_at = ?, version = version + 1 WHERE id = ?"
        f" RETURNING {_COLUMNS}",
        change,
    ).fetchone()
    return row


def _row(info: SecretInfo) -> _Row:
    times = (info.created_at.timestamp(), info.updated_at.timestamp())
    return (info.id, info.owner, info.name, info.version, json.dumps(dict(info.metadata)), *times)


def _info(row: _Row) -> SecretInfo:
    secret_id, owner, name, version, metadata, created_at, updated_at = row
    return SecretInfo(
        id=SecretId(secret_id),
        name=SecretName(name),
        version=version,
        owner=owner,
        metadata=json.loads(metadata),
        created_at=datetime.fromtimestamp(created_at, UTC),
        updated_at=datetime.fromtimestamp(updated_at, UTC),
    )


def _missing(operation: str, secret: str) -> NotFound:
    return NotFound(operation, ResourceKind.SECRET, secret[:128])
