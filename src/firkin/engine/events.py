"""Events to whoever listens. A slow listener loses the oldest and holds up nobody."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Self

from firkin.engine.clock import Clock
from firkin.law.events import Event, EventFilter, EventKind

QUEUE_LIMIT = 1024


class Subscription:
    """One listener's bounded queue; an `EventStream`. `lost` counts what it was too slow for."""

    def __init__(self, bus: EventBus, filter: EventFilter) -> None:
        self._bus = bus
        self._filter = filter
        self._waiting: deque[Event] = deque(maxlen=QUEUE_LIMIT)
        self._arrived = asyncio.Event()
        self._closed = False
        self.lost = 0

    def offer(self, event: Event) -> None:
        if self._filter.matches(event):
            self.lost += len(self._waiting) == QUEUE_LIMIT
            self._waiting.append(event)
            self._arrived.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while not self._waiting:
            if self._closed:
                raise StopAsyncIteration
            self._arrived.clear()
            await self._arrived.wait()
        return self._waiting.popleft()

    async def aclose(self) -> None:
        self.end()
        self._waiting.clear()

    def end(self) -> None:
        """No more will come; what waits may still be read."""
        self._closed = True
        self._bus.forget(self)
        self._arrived.set()


class EventBus:
    """The `EventControl` of the engine, and where the rest of it publishes."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._subscriptions: set[Subscription] = set()

    async def subscribe(self, filter: EventFilter) -> Subscription:
        subscription = Subscription(self, filter)
        self._subscriptions.add(subscription)
        return subscription

    def publish(self, kind: EventKind) -> None:
        if self._subscriptions:
            event = Event(kind, self._clock.now())
            for subscription in tuple(self._subscriptions):
                subscription.offer(event)

    def forget(self, subscription: Subscription) -> None:
        self._subscriptions.discard(subscription)

    def close(self) -> None:
        for subscription in tuple(self._subscriptions):
            subscription.end()
