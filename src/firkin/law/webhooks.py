"""Webhooks: addresses that hear of every change of a sandbox's state."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookSpec:
    """`url` is http or https. `secret` signs each delivery. Empty `events` mean every type.

    The types are those of `firkin.law.lifecycle_events.EVENT_TYPES`.
    """

    url: str
    secret: str
    events: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    """A registered webhook without its secret. `delivered` is the number of the last journal entry it has heard."""

    id: str
    url: str
    created_at: datetime
    events: frozenset[str] = frozenset()
    delivered: int = 0
    failures: int = 0
    last_failure: str = ""
