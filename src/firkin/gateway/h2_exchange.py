"""One request of an intercepted HTTP/2 connection, and its answer: what of it is under way, and how far it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from http import HTTPStatus

from firkin.gateway.answers import status_of, text_of
from firkin.gateway.h2_fields import Asked, Field
from firkin.gateway.judgement import Refusal


@dataclass(slots=True)
class Flow:
    """A body on its way in one direction.

    `ended` means that all of it came, `done` that all of it went on. `taken` bytes went
    on of which the sender has not been told yet. What waits is one piece, however many frames
    it came in: a window of single bytes would weigh fifty times what it says.
    """

    waiting: bytearray = field(default_factory=bytearray)
    trailers: list[Field] | None = None
    taken: int = 0
    ended: bool = False
    done: bool = False

    @property
    def has_more(self) -> bool:
        return not self.done and (self.ended or bool(self.waiting))

    def cut(self, most: int) -> bytes:
        """What is next, at most so much of it."""
        piece = bytes(self.waiting[:most])
        del self.waiting[:most]
        self.done = self.ended and not self.waiting and not self.trailers
        return piece

    def drop(self) -> int:
        """Let go of what waits; how much that was."""
        dropped, self.waiting, self.trailers = len(self.waiting), bytearray(), None
        return dropped


@dataclass(slots=True, eq=False)
class Exchange:
    """`server` is the number of its stream there: 0 while there is no room for it, and when it is answered here.

    `asked` is kept until it goes out. `length` is what the request said of its body, `received` what came of it.
    """

    guest: int
    asked: Asked | None = None
    server: int = 0
    up: Flow = field(default_factory=Flow)
    down: Flow = field(default_factory=Flow)
    length: int | None = None
    received: int = 0
    bodiless: bool = False  # it asked with HEAD
    answered: bool = False


def refusal(why: Refusal) -> tuple[list[Field], bytes]:
    """An answer of our own, as head and body."""
    text, status = text_of(why), status_of(why)
    if why is Refusal.OTHER_HOST:  # the client may ask again on a connection of its own (RFC 9110 15.5.20)
        status = HTTPStatus.MISDIRECTED_REQUEST
    head = [(b":status", b"%d" % status), (b"content-type", b"text/plain"), (b"content-length", b"%d" % len(text))]
    return head, text
