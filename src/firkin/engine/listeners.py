"""Telling many listeners. A slow one loses the oldest and holds up nobody."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Generic, Self, TypeVar

T = TypeVar("T")


class Listener(Generic[T]):
    """One listener's bounded queue. `lost` counts what it was too slow for."""

    def __init__(self, owner: Listeners[T], wanted: Callable[[T], bool], most: int) -> None:
        self._owner = owner
        self._wanted = wanted
        self._waiting: deque[T] = deque(maxlen=most)
        self._arrived = asyncio.Event()
        self._closed = False
        self.lost = 0

    def offer(self, thing: T) -> None:
        if self._wanted(thing):
            self.lost += len(self._waiting) == self._waiting.maxlen
            self._waiting.append(thing)
            self._arrived.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
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
        self._owner.forget(self)
        self._arrived.set()


class Listeners(Generic[T]):
    """Everybody who wants to hear of one sort of thing. False when there is nobody."""

    def __init__(self) -> None:
        self._present: set[Listener[T]] = set()

    def __bool__(self) -> bool:
        return bool(self._present)

    def add(self, wanted: Callable[[T], bool], *, most: int) -> Listener[T]:
        """A listener whose queue holds at most `most` of what is `wanted`."""
        listener = Listener(self, wanted, most)
        self._present.add(listener)
        return listener

    def tell(self, thing: T) -> None:
        for listener in tuple(self._present):
            listener.offer(thing)

    def forget(self, listener: Listener[T]) -> None:
        self._present.discard(listener)

    def close(self) -> None:
        for listener in tuple(self._present):
            listener.end()
