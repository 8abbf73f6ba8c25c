"""Webhooks in the state database. Their secrets stay there: nothing else shows them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime

from firkin.engine.records import Records
from firkin.law.webhooks import Webhook

_COLUMNS = "id, url, secret, events, created_at, delivered, failures, last_failure, failing_since"
_Row = tuple[str, str, str, str, float, int, int, str, float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredWebhook:
    """`failing_since` is when the first delivery failed after the last success; None while they succeed."""

    webhook: Webhook
    secret: str = field(repr=False)
    failing_since: datetime | None = None


class WebhookRecords:
    """Typed reading and writing. Raises `IoFailure`."""

    def __init__(self, records: Records) -> None:
        self._records = records

    async def all(self) -> list[StoredWebhook]:
        """Oldest first."""
        rows: list[_Row] = await self._records.run(
            lambda connection: connection.execute(f"SELECT {_COLUMNS} FROM webhooks ORDER BY created_at, id").fetchall()
        )
        return [_stored(row) for row in rows]

    async def get(self, webhook_id: str) -> StoredWebhook | None:
        row: _Row | None = await self._records.run(
            lambda connection: connection.execute(
                f"SELECT {_COLUMNS} FROM webhooks WHERE id = ?", (webhook_id,)
            ).fetchone()
        )
        return None if row is None else _stored(row)

    async def put(self, row: StoredWebhook) -> None:
        webhook = row.webhook
        events = json.dumps(sorted(webhook.events))
        values = (webhook.id, webhook.url, row.secret, events, webhook.created_at.timestamp(), webhook.delivered)
        await self._records.run(
            lambda connection: connection.execute(
                "INSERT INTO webhooks (id, url, secret, events, created_at, delivered) VALUES (?, ?, ?, ?, ?, ?)",
                values,
            )
        )

    async def note(self, row: StoredWebhook) -> None:
        """Keep how far its deliveries are. One that was removed meanwhile stays removed."""
        webhook = row.webhook
        since = None if row.failing_since is None else row.failing_since.timestamp()
        values = (webhook.delivered, webhook.failures, webhook.last_failure, since, webhook.id)
        await self._records.run(
            lambda connection: connection.execute(
                "UPDATE webhooks SET delivered = ?, failures = ?, last_failure = ?, failing_since = ? WHERE id = ?",
                values,
            )
        )

    async def drop(self, webhook_id: str) -> bool:
        """Whether there was one."""
        gone: int = await self._records.run(
            lambda connection: connection.execute("DELETE FROM webhooks WHERE id = ?", (webhook_id,)).rowcount
        )
        return gone > 0


def _stored(row: _Row) -> StoredWebhook:
    webhook_id, url, secret, events, created_at, delivered, failures, last_failure, since = row
    webhook = Webhook(
        id=webhook_id,
        url=url,
        created_at=datetime.fromtimestamp(created_at, UTC),
        events=frozenset(json.loads(events)),
        delivered=delivered,
        failures=failures,
        last_failure=last_failure,
    )
    return StoredWebhook(
        webhook=webhook,
        secret=secret,
        failing_since=None if since is None else datetime.fromtimestamp(since, UTC),
    )
