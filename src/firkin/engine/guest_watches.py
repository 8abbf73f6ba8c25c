"""What changes in one sandbox's directories: asked of the agent, which keeps it until then."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Self

from firkin.engine.guest_entries import event_weight, read_events
from firkin.engine.guest_faults import GuestRefused, file_errors
from firkin.engine.guest_link import CALL_S, GuestLink, LinkStream
from firkin.law.errors import FirkinError
from firkin.law.files import FileEvent, FileEventStream, SandboxPath, WatchOptions
from firkin.wire import codec
from firkin.wire.codec import Object
from firkin.wire.frames import WireError

Reach = Callable[[], Awaitable[GuestLink]]
_OPERATION = "watch directory"
_END_S = 2.0
_DRAINED_WITHIN_S = 60.0
MOST_DRAINED = 500_000  # twice what one watch keeps, unless many watch the same directory


async def begin_watch(link: GuestLink, path: SandboxPath, options: WatchOptions) -> FileEventStream:
    """A watch that ends with its connection."""
    with file_errors(_OPERATION, link.sandbox_id, path):
        stream = link.stream("watch", _arguments(path, options))
        try:
            number = _number(link, await stream.event(CALL_S))
        except BaseException:
            await stream.aclose()
            raise

    async def reach() -> GuestLink:
        return link

    return _FileEvents(reach, number, path, stream)


async def hold_watch(link: GuestLink, path: SandboxPath, options: WatchOptions, reach: Reach) -> FileEventStream:
    with file_errors(_OPERATION, link.sandbox_id, path):
        answer = await link.call("watch", _arguments(path, options))
    return _FileEvents(reach, _number(link, answer), path)


def _arguments(path: SandboxPath, options: WatchOptions) -> Object:
    return {
        "path": path,
        "recursive": options.recursive,
        "entry": options.include_entry,
        "network": options.allow_network_mounts,
        "held": options.held,
    }


def _number(link: GuestLink, answer: Object) -> int:
    try:
        return codec.integer(answer, "watch")
    except WireError as error:
        raise link.distrust(str(error)) from None


class _FileEvents:
    """A `FileEventStream`. `stream` is what the watch lives by; None for one that is held."""

    def __init__(self, reach: Reach, number: int, path: SandboxPath, stream: LinkStream | None = None) -> None:
        self._reach = reach
        self._number = number
        self._path = path
        self._stream = stream
        self._asking: LinkStream | None = None  # who waits may be cancelled; the answer is for the next one
        self._ready: deque[FileEvent] = deque()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> FileEvent:
        while not self._ready:
            link = await self._reach()
            if self._asking is None:
                self._asking = link.stream("changes", {"watch": self._number, "wait": True})
            try:
                events, _ = await self._answer(link, self._asking, None)
            except FirkinError:
                self._asking = None
                raise
            self._asking = None
            self._ready.extend(events)
        return self._ready.popleft()

    async def drain(self) -> list[FileEvent]:
        """What is left comes from inside the sandbox, and need not be true: neither memory nor time is without end."""
        now = asyncio.get_running_loop().time
        until = now() + _DRAINED_WITHIN_S
        drained, left = await self.page()
        room = MOST_DRAINED - sum(map(event_weight, drained))
        while left > 0 and room > 0 and now() < until:
            events, _ = await self.page()
            left -= len(events) or left
            room -= sum(map(event_weight, events))
            drained += events
        return drained

    async def page(self) -> tuple[list[FileEvent], int]:
        link = await self._reach()
        earlier, self._asking = self._asking, None
        stream = link.stream("changes", {"watch": self._number, "wait": False})
        try:
            page = list(self._ready)
            self._ready.clear()
            if earlier is not None:  # the agent answers it first
                page += (await self._answer(link, earlier, CALL_S))[0]
            events, left = await self._answer(link, stream, CALL_S)
            return page + events, left
        finally:
            await stream.aclose()
            if earlier is not None:
                await earlier.aclose()

    async def _answer(self, link: GuestLink, stream: LinkStream, within_s: float | None) -> tuple[list[FileEvent], int]:
        with file_errors(_OPERATION, link.sandbox_id, self._path):
            answer = await stream.result(within_s)
        try:
            return read_events(answer), codec.integer(answer, "left")
        except WireError as error:
            raise link.distrust(str(error)) from None

    async def aclose(self) -> None:
        asking, self._asking = self._asking, None
        if asking is not None:
            await asking.aclose()
        if self._stream is not None:
            await self._stream.aclose()
            return
        with suppress(FirkinError, GuestRefused):  # the sandbox has ended, or stands still
            link = await self._reach()
            await link.call("unwatch", {"watch": self._number}, within_s=_END_S)
