"""Events to whoever listens. A slow listener loses the oldest and holds up nobody."""

from __future__ import annotations

from firkin.engine.clock import Clock
from firkin.engine.listeners import Listener, Listeners
from firkin.law.events import Event, EventFilter, EventKind

QUEUE_LIMIT = 1024


class EventBus:
    """The `EventControl` of the engine, and where the rest of it publishes."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._listeners: Listeners[Event] = Listeners()

    async def subscribe(self, filter: EventFilter) -> Listener[Event]:
        return self._listeners.add(filter.matches, most=QUEUE_LIMIT)

    def publish(self, kind: EventKind) -> None:
        if self._listeners:
            self._listeners.tell(Event(kind, self._clock.now()))

    def close(self) -> None:
        self._listeners.close()
