"""The operations watch, changes and unwatch."""

from __future__ import annotations

import os

from firkin.guest.connections import Taker
from firkin.guest.faults import Refused
from firkin.guest.file_operations import Steps, path_of
from firkin.guest.watch import Asking, Watch
from firkin.guest.watches import Watches, check_watchable
from firkin.wire import codec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from firkin.guest.connections import Stream
    from firkin.guest.entries import Entries
    from firkin.guest.loop import Loop
    from firkin.wire.codec import Object

_MOST_HELD = 1024


class WatchOperations:
    __slots__ = ("_held", "_known", "_loop", "_watches")

    def __init__(self, loop: Loop, entries: Entries) -> None:
        self._loop = loop
        self._watches = Watches(loop, entries)
        self._known: dict[int, Watch] = {}
        self._held: dict[int, Watch] = {}  # oldest first

    def operations(self) -> dict[str, Callable[[Stream, Object], None]]:
        return {"watch": self.watch, "changes": self.changes, "unwatch": self.unwatch}

    def watch(self, stream: Stream, args: Object) -> None:
        path = path_of(args)
        check_watchable(path, network=codec.flag(args, "network"))
        watch = Watch(self._watches, path, recursive=codec.flag(args, "recursive"), entry=codec.flag(args, "entry"))
        Steps(self._loop, stream, self._establishing(stream, watch, held=codec.flag(args, "held")), path)

    def _establishing(self, stream: Stream, watch: Watch, *, held: bool) -> Iterator[bool]:
        number = int.from_bytes(os.urandom(6), "big")  # not the number of a watch in a life before this one
        try:
            yield from self._watches.establish(watch)
            self._known[number] = watch
        finally:
            if number not in self._known:  # refused, or cancelled half-way
                self._watches.drop(watch)
        if held:
            self._hold(number, watch)
            stream.result({"watch": number})
        else:
            stream.taker = _Bound(self, number)
            stream.event({"watch": number})

    def _hold(self, number: int, watch: Watch) -> None:
        """Hosts that die do not give their watches back: the oldest makes room."""
        self._held[number] = watch
        if len(self._held) > _MOST_HELD:
            self.end(next(iter(self._held)))

    def changes(self, stream: Stream, args: Object) -> None:
        watch = self._known.get(codec.integer(args, "watch"))
        if watch is None:
            raise Refused("not_found", "no such watch")
        Steps(self._loop, stream, self._telling(stream, watch, wait=codec.flag(args, "wait")))

    def _telling(self, stream: Stream, watch: Watch, *, wait: bool) -> Iterator[bool]:
        yield from self._watches.catch_up()
        if watch.waiting is not None:  # who asked before is told before
            earlier, watch.waiting = watch.waiting, None
            watch.answer(earlier)
        if wait and watch.silent:
            watch.waiting = stream
            stream.taker = Asking(watch)
        else:
            watch.answer(stream)

    def unwatch(self, stream: Stream, args: Object) -> None:
        self.end(codec.integer(args, "watch"))
        stream.result({})

    def end(self, number: int) -> None:
        self._held.pop(number, None)
        watch = self._known.pop(number, None)
        if watch is not None:
            self._watches.drop(watch)


class _Bound(Taker):
    """A watch that ends with the stream that began it."""

    __slots__ = ("_number", "_operations")

    def __init__(self, operations: WatchOperations, number: int) -> None:
        self._operations = operations
        self._number = number

    def cancelled(self) -> None:
        self._operations.end(self._number)
