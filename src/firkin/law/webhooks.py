"""Webhooks: addresses that hear of every change of a sandbox's state."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from firkin.law.states import SandboxState


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookSpec:
    """`url` is http or https. `secret` signs each delivery. Empty `states` mean every change."""

    url: str
    secret: str
    states: frozenset[SandboxState] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    """A registered webhook without its secret. `delivered` is the number of the last journal entry it has heard."""

    id: str
    url: str
    created_at: datetime
    states: frozenset[SandboxState] = frozenset()
    delivered: int = 0
    failures: int = 0
    last_failure: str = ""
