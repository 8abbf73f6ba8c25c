"""The operations watch and drain."""

from __future__ import annotations

from firkin.guest.faults import Refused
from firkin.guest.file_operations import Steps, path_of
from firkin.guest.watches import Watch, Watches, check_watchable
from firkin.wire import codec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from firkin.guest.connections import Stream
    from firkin.guest.entries import Entries
    from firkin.guest.loop import Loop
    from firkin.wire.codec import Object


class WatchOperations:
    __slots__ = ("_loop", "_watches")

    def __init__(self, loop: Loop, entries: Entries) -> None:
        self._loop = loop
        self._watches = Watches(loop, entries)

    def operations(self) -> dict[str, Callable[[Stream, Object], None]]:
        return {"watch": self.watch, "drain": self.drain}

    def watch(self, stream: Stream, args: Object) -> None:
        path = path_of(args)
        check_watchable(path, network=codec.flag(args, "network"))
        recursive, entry = codec.flag(args, "recursive"), codec.flag(args, "entry")
        watch = Watch(self._watches, stream, path, recursive=recursive, entry=entry)
        Steps(self._loop, stream, self._establishing(watch), path)

    def _establishing(self, watch: Watch) -> Iterator[bool]:
        try:
            yield from self._watches.establish(watch)
        finally:
            if watch.stream.taker is not watch:  # refused, or cancelled half-way
                self._watches.drop(watch)

    def drain(self, stream: Stream, args: Object) -> None:
        watched = stream.connection.streams.get(codec.integer(args, "watch"))
        if watched is None:
            raise Refused("not_found", "no such watch")
        Steps(self._loop, stream, self._draining(stream))

    def _draining(self, stream: Stream) -> Iterator[bool]:
        yield from self._watches.drain(stream.connection)
        stream.result({})
