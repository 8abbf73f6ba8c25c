"""Webhooks: every change of a sandbox's state, posted to addresses that the operator has named.

Each webhook reads the journal with a cursor of its own, which is recorded after
every delivery: what happened while the server was away is told afterwards, in
order, and at worst twice. A receiver that does not answer is tried again, with
growing patience, and holds up no other. After a week without a single success its
cursor is moved to the present, which its record and the log say.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from urllib.parse import urlsplit

from firkin.engine.clock import Clock
from firkin.engine.deliveries import Courier, NotDelivered
from firkin.engine.events import EventBus
from firkin.engine.listeners import Listener
from firkin.engine.records import Records
from firkin.engine.webhook_records import StoredWebhook, WebhookRecords
from firkin.law.errors import BackendFailure, FirkinError, InvalidReason, InvalidSpec, NotFound, ResourceKind
from firkin.law.events import Event, JournalQuery, LifecycleEntry
from firkin.law.ids import SandboxId
from firkin.law.lifecycle_events import EVENT_TYPES, event_body, event_states, event_type
from firkin.law.states import SandboxState
from firkin.law.webhooks import Webhook, WebhookSpec
from firkin.lifetimes import Children, children

MOST_WEBHOOKS = 64
FIRST_PATIENCE_S = 1.0
MOST_PATIENCE_S = 300.0
GIVE_UP_AFTER_S = 7 * 24 * 3600.0
LOOK_AGAIN_S = 60.0
_AT_ONCE = 100
_MOST_URL = 2048
_MOST_SECRET = 1024
_TEST_TYPE = "firkin.webhook.test"
_log = logging.getLogger("firkin.engine")


class LocalWebhooks:
    """The `WebhookControl` of the engine. Deliveries go on while `run` does."""

    def __init__(self, *, records: Records, events: EventBus, clock: Clock) -> None:
        self._records = records
        self._rows = WebhookRecords(records)
        self._events = events
        self._clock = clock
        self._lock = asyncio.Lock()
        self._courier: Courier | None = None
        self._children: Children | None = None
        self._lines: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Deliver until cancelled."""
        courier = Courier()
        async with children() as tasks:
            async with self._lock:
                self._courier, self._children = courier, tasks
                for row in await self._rows.all():
                    self._begin(row.webhook.id)
            try:
                await asyncio.Event().wait()
            finally:
                self._courier = self._children = None
                self._lines.clear()

    async def add(self, spec: WebhookSpec) -> Webhook:
        """Tell of every change from now on. `InvalidSpec` for an address or a secret that cannot be."""
        check_webhook(spec)
        async with self._lock:
            if len(await self._rows.all()) >= MOST_WEBHOOKS:
                raise _invalid(f"there are {MOST_WEBHOOKS} webhooks already; remove one first")
            webhook = Webhook(
                id=f"wh{secrets.token_hex(8)}",
                url=spec.url,
                created_at=self._clock.now(),
                events=spec.events,
                delivered=await self._records.last_number(),
            )
            await self._rows.put(StoredWebhook(webhook=webhook, secret=spec.secret))
            self._begin(webhook.id)
        return webhook

    async def list(self) -> Sequence[Webhook]:
        return [row.webhook for row in await self._rows.all()]

    async def remove(self, webhook_id: str) -> None:
        """See `WebhookControl.remove`. A delivery under way is cut short."""
        async with self._lock:
            if not await self._rows.drop(webhook_id):
                raise _unknown(webhook_id)
            line = self._lines.pop(webhook_id, None)
            if line is not None:
                line.cancel()

    async def test(self, webhook_id: str) -> str:
        """See `WebhookControl.test`."""
        row = await self._rows.get(webhook_id)
        if row is None:
            raise _unknown(webhook_id)
        if self._courier is None:
            raise BackendFailure("test a webhook", "the engine", "it does not deliver yet")
        try:
            await self._courier.deliver(row.webhook.url, row.secret, webhook_id, _test_event(self._clock.now()))
        except NotDelivered as failure:
            return str(failure)
        return ""

    def _begin(self, webhook_id: str) -> None:
        if self._children is None or self._courier is None:
            return
        line = _Line(webhook_id, records=self._records, events=self._events, clock=self._clock, courier=self._courier)
        self._lines[webhook_id] = self._children.start(line.run(), name=f"webhook {webhook_id}")


class _Line:
    """The deliveries of one webhook, one after the other."""

    def __init__(self, webhook_id: str, *, records: Records, events: EventBus, clock: Clock, courier: Courier) -> None:
        self._id = webhook_id
        self._records = records
        self._rows = WebhookRecords(records)
        self._events = events
        self._clock = clock
        self._courier = courier
        self._read = 0  # the newest entry looked at; what is told of it is in the row

    async def run(self) -> None:
        """Until it is removed."""
        grew = self._events.journal_grew()
        try:
            while True:
                try:
                    row = await self._rows.get(self._id)
                    if row is None:
                        return
                    if not await self._tell_all(row):
                        await _wait_for(grew, LOOK_AGAIN_S)
                except FirkinError as error:
                    _log.error("webhook stuck id=%s error=%s", self._id, error)
                    await self._clock.sleep_until(self._clock.monotonic() + MOST_PATIENCE_S)
        finally:
            await grew.aclose()

    async def _tell_all(self, row: StoredWebhook) -> bool:
        """Deliver what the journal has for it; False when there was nothing."""
        webhook = row.webhook
        query = JournalQuery(after=max(self._read, webhook.delivered), became=_wanted(webhook.events), limit=_AT_ONCE)
        entries = await self._records.entries(query)
        for entry in entries:
            if event_type(entry) in (webhook.events or EVENT_TYPES):
                row = await self._tell(row, entry)
            self._read = max(entry.number, row.webhook.delivered)
            if row.webhook.delivered > entry.number:  # it was moved to the present
                break
        return bool(entries)

    async def _tell(self, row: StoredWebhook, entry: LifecycleEntry) -> StoredWebhook:
        """Deliver one entry, trying until it is taken or given up; the row as it is recorded then."""
        event = event_body(entry, await self._records.last(entry.sandbox_id))
        while True:
            try:
                await self._courier.deliver(row.webhook.url, row.secret, self._id, event)
            except NotDelivered as failure:
                row = await self._failed(row, entry, str(failure))
                if row.webhook.delivered > entry.number:
                    return row
                patience_s = min(MOST_PATIENCE_S, FIRST_PATIENCE_S * 2.0 ** min(row.webhook.failures - 1, 16))
                await self._clock.sleep_until(self._clock.monotonic() + patience_s)
            else:
                webhook = replace(row.webhook, delivered=entry.number, failures=0, last_failure="")
                row = replace(row, webhook=webhook, failing_since=None)
                await self._rows.note(row)
                return row

    async def _failed(self, row: StoredWebhook, entry: LifecycleEntry, why: str) -> StoredWebhook:
        now = self._clock.now()
        since = row.failing_since or now
        webhook = replace(row.webhook, failures=row.webhook.failures + 1, last_failure=why)
        if (now - since).total_seconds() >= GIVE_UP_AFTER_S:
            newest = await self._records.last_number()
            said = f"given up at {now:%Y-%m-%dT%H:%M:%SZ}, numbers {entry.number} to {newest} were not told: {why}"
            webhook = replace(webhook, delivered=max(newest, entry.number + 1), failures=1, last_failure=said)
            since = now
            _log.error("webhook given up id=%s from=%d to=%d error=%s", self._id, entry.number, newest, why)
        elif webhook.failures == 1:
            _log.warning("webhook failed id=%s number=%d error=%s", self._id, entry.number, why)
        row = replace(row, webhook=webhook, failing_since=since)
        await self._rows.note(row)
        return row


async def _wait_for(grew: Listener[Event], within_s: float) -> None:
    """Until the journal has grown; from time to time without, should an event have been lost."""
    try:
        async with asyncio.timeout(within_s):
            await anext(grew)
    except TimeoutError:
        return
    except StopAsyncIteration:  # the engine closes
        await asyncio.Event().wait()


def _wanted(events: frozenset[str]) -> frozenset[SandboxState]:
    """The states that a change of one of these types can lead to."""
    return frozenset[SandboxState]().union(*(event_states(name) for name in events or EVENT_TYPES))


def check_webhook(spec: WebhookSpec) -> None:
    """Raise `InvalidSpec` for what cannot be delivered to or signed with."""
    try:
        parts = urlsplit(spec.url)
        possible = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        possible = False
    if possible and "@" in parts.netloc:
        raise _invalid(
            f"the address {spec.url[:200]!r} has a name or a password, which would not be sent; deliveries are signed"
        )
    if not possible or len(spec.url) > _MOST_URL or not all("!" <= letter <= "~" for letter in spec.url):
        raise _invalid(
            f"{spec.url[:200]!r} is not an address; write http:// or https://, a host and a path, in ASCII: other"
            " letters percent-encoded in a path, and as xn-- in a host"
        )
    if not 0 < len(spec.secret) <= _MOST_SECRET:
        raise _invalid(f"the secret has {len(spec.secret)} characters; it must have 1 to {_MOST_SECRET}")


def _invalid(detail: str) -> InvalidSpec:
    return InvalidSpec("add a webhook", InvalidReason.INVALID_SETTINGS, detail)


def _unknown(webhook_id: str) -> NotFound:
    return NotFound("find a webhook", ResourceKind.WEBHOOK, webhook_id[:64])


def _test_event(now: datetime) -> dict[str, object]:
    entry = LifecycleEntry(
        number=0,
        sandbox_id=SandboxId("0" * 20),
        at=now,
        was=None,
        became=SandboxState.RUNNING,
        cause="a test of this webhook",
        actor="operator",
    )
    return {**event_body(entry, None), "type": _TEST_TYPE}
