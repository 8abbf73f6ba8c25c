"""Events to whoever listens. A slow listener loses the oldest and holds up nobody.

The journal loses nothing: who must not miss a change reads it, and listens only
for the moment to read on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from firkin.engine.clock import Clock
from firkin.engine.listeners import Listener, Listeners
from firkin.law.events import Event, EventFilter, EventKind, JournalQuery, LifecycleChanged, LifecycleEntry

if TYPE_CHECKING:
    from firkin.engine.node import Node

QUEUE_LIMIT = 1024


class EventBus:
    """Where the rest of the engine publishes."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._listeners: Listeners[Event] = Listeners()

    async def subscribe(self, filter: EventFilter) -> Listener[Event]:
        return self._listeners.add(filter.matches, most=QUEUE_LIMIT)

    def journal_grew(self) -> Listener[Event]:
        """Something to wait for before reading on in the journal: one event waits at most, whatever came since."""
        return self._listeners.add(lambda event: isinstance(event.kind, LifecycleChanged), most=1)

    def publish(self, kind: EventKind) -> None:
        if self._listeners:
            self._listeners.tell(Event(kind, self._clock.now()))

    def close(self) -> None:
        self._listeners.close()


class LocalEvents:
    """The `EventControl` of the engine."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def subscribe(self, filter: EventFilter) -> Listener[Event]:
        return await self._node.events.subscribe(filter)

    async def journal(self, query: JournalQuery) -> Sequence[LifecycleEntry]:
        """See `EventControl.journal`. At most 1,000 at once."""
        return await self._node.records.entries(query)
