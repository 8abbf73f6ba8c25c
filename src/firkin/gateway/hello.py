"""The first message of TLS, read without taking part: which name does the client ask for (RFC 8446 4.1.2, 6066 3)?

And which protocols could it speak (ALPN, RFC 7301)?

Bytes in, an answer out. Encrypted ClientHello hides the true name; what counts is
the name that stands outside, since that is where the connection is led.
"""

from __future__ import annotations

from firkin.gateway.names import clean_name

MOST_HELLO = 32 * 1024  # post-quantum key shares make 2 KiB; the rest is room
_HANDSHAKE, _CLIENT_HELLO, _SERVER_NAME, _HOST_NAME, _PROTOCOLS = 22, 1, 0, 0, 16


class NotTls(Exception):
    """What came is no ClientHello, or one that says two things at once."""


def server_name(data: bytes) -> str | None:
    """The name that the hello asks for, None when it asks for none. Raises `NotTls`."""
    body = _extensions(data).get(_SERVER_NAME)
    return None if body is None else _only_name(body)


def protocols(data: bytes) -> tuple[bytes, ...]:
    """Those that the hello offers, best first. Raises `NotTls`."""
    body = _extensions(data).get(_PROTOCOLS)
    if body is None:
        return ()
    offered = _Reader(body)
    names = _Reader(offered.take(offered.number(2)))
    found = []
    while not names.at_end:
        found.append(names.take(names.number(1)))
    if not offered.at_end:
        raise NotTls
    return tuple(found)


def is_complete(data: bytes) -> bool:
    """Whether the hello is all there. Raises `NotTls` as soon as it cannot become one."""
    if len(data) >= MOST_HELLO:
        raise NotTls
    try:
        _message(data)
    except _NotYet:
        return False
    return True


def _extensions(data: bytes) -> dict[int, bytes]:
    """By their numbers; one number twice is no hello."""
    hello = _Reader(_message(data))
    hello.take(2 + 32)  # version, random
    hello.take(hello.number(1))  # session
    hello.take(hello.number(2))  # ciphers
    hello.take(hello.number(1))  # compressions
    if hello.at_end:
        return {}
    extensions = _Reader(hello.take(hello.number(2)))
    seen: dict[int, bytes] = {}
    while not extensions.at_end:
        kind, body = extensions.number(2), extensions.take(extensions.number(2))
        if kind in seen:
            raise NotTls
        seen[kind] = body
    return seen


def _only_name(body: bytes) -> str:
    names = _Reader(body)
    entries = _Reader(names.take(names.number(2)))
    if entries.number(1) != _HOST_NAME:
        raise NotTls
    name = clean_name(entries.take(entries.number(2)))
    if name is None or not entries.at_end or not names.at_end:
        raise NotTls
    return name


def _message(data: bytes) -> bytes:
    """The body of the ClientHello, put together from its records. Raises `_NotYet` when more must come."""
    body, at = bytearray(), 0
    while len(body) < 4 or len(body) < 4 + int.from_bytes(body[1:4], "big"):
        head = data[at : at + 5]
        if head[:1] not in (b"", bytes([_HANDSHAKE])) or head[1:2] not in (b"", b"\x03"):
            raise NotTls
        if len(head) < 5:
            raise _NotYet
        size = int.from_bytes(head[3:5], "big")
        if not 0 < size <= 16384:
            raise NotTls
        body += data[at + 5 : at + 5 + size]
        if body[:1] not in (b"", bytes([_CLIENT_HELLO])):
            raise NotTls
        if len(data) < at + 5 + size:
            raise _NotYet
        at += 5 + size
    return bytes(body[4 : 4 + int.from_bytes(body[1:4], "big")])


class _NotYet(Exception):
    """The message goes on in bytes that have not come."""


class _Reader:
    """Takes bytes off the front; `NotTls` when there are not that many."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def at_end(self) -> bool:
        return self._at == len(self._data)

    def take(self, count: int) -> bytes:
        taken = self._data[self._at : self._at + count]
        if len(taken) != count:
            raise NotTls
        self._at += count
        return taken

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")
