"""One watch: what it covers, what it has not told yet, and who waits for it."""

from __future__ import annotations

import os

from firkin.guest.changes import Changes
from firkin.guest.connections import Taker
from firkin.guest.entries import encoded_at_most
from firkin.guest.faults import Refused
from firkin.wire.frames import MAX_PAYLOAD

TYPE_CHECKING = False
if TYPE_CHECKING:
    from firkin.guest.connections import Stream
    from firkin.guest.watches import Watches
    from firkin.wire.codec import Object

LOST = "changes came faster than they were asked for; some are lost"
_WITH_ENTRY = ("create", "chmod", "write")
_EVENTS_AN_ANSWER = 500
_BYTES_AN_ANSWER = MAX_PAYLOAD // 2  # with the event that goes above it, it is one frame
_A_CHARACTER = 12  # bytes of JSON, at most: two escapes
_AN_EVENT = 64


class Watch:
    """One directory that somebody wants to hear of. Told when asked: at once, or when there is something to tell."""

    __slots__ = ("_changes", "_fault", "_watches", "entry", "places", "recursive", "root", "waiting")

    def __init__(self, watches: Watches, root: str, *, recursive: bool, entry: bool) -> None:
        self._watches = watches
        self.root = root
        self.recursive = recursive
        self.entry = entry
        self.places: dict[int, str] = {}  # kernel's number → name relative to the root, "" for the root
        self.waiting: Stream | None = None
        self._changes = Changes(watches.room)
        self._fault: Refused | None = None

    @property
    def silent(self) -> bool:
        """Whether there is nothing to tell yet."""
        return not self._changes and self._fault is None

    def path(self, name: str) -> str:
        return os.path.join(self.root, name) if name else self.root

    def add(self, kind: str, name: str) -> None:
        if not self._changes.add(kind, name):
            self.fail(Refused("limit", LOST, self.root))

    def fail(self, fault: Refused) -> None:
        """Nothing more will be told than what is there, and then the fault, as often as it is asked."""
        if self._fault is None:
            self._fault = fault
        self._watches.leave_all(self)

    def end(self) -> None:
        """Nobody will ask again."""
        self._changes.clear()
        if self.waiting is not None:
            self.waiting.error(Refused("not_found", "the watch has ended"))
            self.waiting = None

    def tell(self) -> None:
        """Answer whoever waits, if there is something to say."""
        if self.waiting is not None and not self.silent:
            stream, self.waiting = self.waiting, None
            self.answer(stream)

    def answer(self, stream: Stream) -> None:
        """The oldest changes, which are forgotten, and how many are left."""
        if self._fault is not None and not self._changes:
            stream.error(self._fault)
            return
        events: list[Object] = []
        entries: dict[str, Object | None] = {}
        size = 0
        while self._changes and len(events) < _EVENTS_AN_ANSWER and size < _BYTES_AN_ANSWER:
            kind, name = self._changes.take()
            event: Object = {"kind": kind, "name": name or "."}
            size += _AN_EVENT + _A_CHARACTER * len(name)
            if self.entry and kind in _WITH_ENTRY:
                if name not in entries:
                    entries[name] = self._watches.entry_of(self.path(name))
                entry = entries[name]
                if entry is not None:
                    event["entry"] = entry
                    size += encoded_at_most(entry)
            events.append(event)
        stream.result({"events": events, "left": len(self._changes)})


class Asking(Taker):
    """The stream of one who waits for changes."""

    __slots__ = ("_watch",)

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def cancelled(self) -> None:
        self._watch.waiting = None
