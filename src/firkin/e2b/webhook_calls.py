"""Webhooks under ``/firkin/v1/webhooks``: for the operator, since they tell of every tenant's sandboxes."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

import msgspec

from firkin.e2b.exchange import Exchange, Refused
from firkin.e2b.models import parse
from firkin.law.backend import SandboxBackend, WebhookControl
from firkin.law.lifecycle_events import EVENT_TYPES
from firkin.law.webhooks import Webhook, WebhookSpec

_MAX_BODY = 16 * 1024
_SECRET_BYTES = 32


class _NewWebhook(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST /firkin/v1/webhooks``. No `events` means all; no `secret` has one made."""

    url: str
    secret: str | None = None
    events: list[str] = []


class WebhookCalls:
    """Answers for a caller who has proved to be the operator."""

    def __init__(self, backend: SandboxBackend) -> None:
        self._backend = backend

    async def answer(self, exchange: Exchange, words: list[str]) -> None:
        """`words` is what follows ``/firkin/v1/`` in the path, split at slashes."""
        match exchange.method, words:
            case "GET", ["webhooks"]:
                found = await self._control().list()
                await exchange.answer_json(200, [webhook_json(webhook) for webhook in found])
            case "POST", ["webhooks"]:
                await self._add(exchange)
            case "DELETE", ["webhooks", webhook_id]:
                await self._control().remove(webhook_id)
                await exchange.answer(204)
            case "POST", ["webhooks", webhook_id, "test"]:
                failure = await self._control().test(webhook_id)
                await exchange.answer_json(200, {"delivered": not failure, "failure": failure})
            case _:
                raise Refused(404, f"no route {exchange.method} {exchange.path[:200]}")

    def _control(self) -> WebhookControl:
        webhooks = self._backend.webhooks
        if webhooks is None:
            raise Refused(400, "this server delivers no webhooks", should_retry=False)
        return webhooks

    async def _add(self, exchange: Exchange) -> None:
        """The secret is in the answer only when it was made here, and never shown again."""
        asked = parse(await exchange.body(_MAX_BODY), _NewWebhook)
        made = secrets.token_urlsafe(_SECRET_BYTES) if asked.secret is None else None
        spec = WebhookSpec(url=asked.url, secret=made or asked.secret or "", events=_events(asked.events))
        added = webhook_json(await self._control().add(spec))
        await exchange.answer_json(201, added if made is None else {**added, "secret": made})


def _events(events: Sequence[str]) -> frozenset[str]:
    unknown = [name for name in events if name not in EVENT_TYPES]
    if unknown:
        raise Refused(400, f"events names {unknown[0][:64]!r}; there are {', '.join(EVENT_TYPES)}", should_retry=False)
    return frozenset(events)


def webhook_json(webhook: Webhook) -> dict[str, Any]:
    """`events` are those that it hears of; `delivered` is the number of the last one it took."""
    heard = [name for name in EVENT_TYPES if name in (webhook.events or EVENT_TYPES)]
    return {
        "id": webhook.id,
        "url": webhook.url,
        "events": heard,
        "created_at": webhook.created_at.isoformat(),
        "delivered": webhook.delivered,
        "failures": webhook.failures,
        "last_failure": webhook.last_failure,
    }
