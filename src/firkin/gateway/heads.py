"""HTTP/1 heads, read as strictly as RFC 9112 allows: what two readers could understand differently is refused.

One line end (CRLF), one Host, one framing, no folding, no space before a colon.
Bytes in, values out; what goes on is written anew from the values.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

MOST_HEAD = 64 * 1024
MOST_FIELDS = 200
Fields = tuple[tuple[bytes, bytes], ...]

_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_REQUEST = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}) ([!-~\x80-\xff]{1,32768}) HTTP/1\.([01])")
_STATUS = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: ([\t -~\x80-\xff]*))?")
_VALUE = re.compile(rb"[\t -~\x80-\xff]*")
_LENGTH = re.compile(rb"[0-9]{1,18}")
_OF_ONE_HOP = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade")
)
_NOT_SHOWN = frozenset((b"alt-svc",))  # it invites to QUIC, which does not pass


class Malformed(Exception):
    """No head that can be understood in one way only."""


@dataclass(frozen=True, slots=True)
class NoBody:
    """Nothing follows the head."""


@dataclass(frozen=True, slots=True)
class Sized:
    """So many bytes follow."""

    size: int


@dataclass(frozen=True, slots=True)
class Chunked:
    """Chunks follow."""


@dataclass(frozen=True, slots=True)
class UntilClose:
    """Everything follows that comes."""


Framing = NoBody | Sized | Chunked | UntilClose


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    method: bytes
    target: bytes
    minor: int
    fields: Fields
    host: bytes
    framing: Framing
    websocket: bool
    keeps_alive: bool

    def written(self, replaced: Mapping[str, str]) -> bytes:
        """The head as it goes on, with `replaced` in place of the guest's own headers of these names."""
        own = {name.lower().encode() for name in replaced} | _OF_ONE_HOP
        lines = [b"%s %s HTTP/1.%d" % (self.method, self.target, self.minor)]
        lines += [b"%s: %s" % pair for pair in self.fields if pair[0].lower() not in own]
        lines += [b"%s: %s" % (name.encode(), value.encode()) for name, value in replaced.items()]
        lines += _connection_lines(self.framing, websocket=self.websocket, keeps_alive=self.keeps_alive)
        return b"\r\n".join(lines) + b"\r\n\r\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    status: int
    reason: bytes
    minor: int
    fields: Fields
    framing: Framing
    keeps_alive: bool

    def written(self, *, keeps_alive: bool) -> bytes:
        hidden = _OF_ONE_HOP | _NOT_SHOWN | (frozenset((b"content-length",)) if self.framing == Chunked() else set())
        lines = [b"HTTP/1.%d %d %s" % (self.minor, self.status, self.reason)]
        lines += [b"%s: %s" % pair for pair in self.fields if pair[0].lower() not in hidden]
        websocket = self.status == 101
        lines += _connection_lines(self.framing, websocket=websocket, keeps_alive=keeps_alive or self.status < 200)
        return b"\r\n".join(lines) + b"\r\n\r\n"


def parse_request(raw: bytes) -> Request:
    """A request's head, to its empty line. Raises `Malformed`."""
    first, fields = _split(raw)
    found = _REQUEST.fullmatch(first)
    if found is None:
        raise Malformed
    method, target, minor = found[1], found[2], int(found[3])
    if method == b"CONNECT" or not (target.startswith(b"/") or (method, target) == (b"OPTIONS", b"*")):
        raise Malformed
    return Request(
        method=method,
        target=target,
        minor=minor,
        fields=fields,
        host=_only(fields, b"host"),
        framing=_request_framing(fields, minor),
        websocket=_asks_for_websocket(fields),
        keeps_alive=_keeps_alive(fields, minor),
    )


def parse_response(raw: bytes, *, method: bytes) -> Response:
    """An answer's head to a request with `method`. Raises `Malformed`."""
    first, fields = _split(raw)
    found = _STATUS.fullmatch(first)
    if found is None:
        raise Malformed
    minor, status = int(found[1]), int(found[2])
    return Response(
        status=status,
        reason=found[3] or b"",
        minor=minor,
        fields=fields,
        framing=_response_framing(fields, status, method),
        keeps_alive=_keeps_alive(fields, minor),
    )


def parse_chunk_size(line: bytes) -> int:
    """The size that begins a chunk; extensions are dropped. Raises `Malformed`."""
    digits = line.removesuffix(b"\r\n").partition(b";")[0].rstrip(b" \t")
    if not re.fullmatch(rb"[0-9A-Fa-f]{1,15}", digits) or not line.endswith(b"\r\n") or b"\r" in line[:-2]:
        raise Malformed
    return int(digits, 16)


def _split(raw: bytes) -> tuple[bytes, Fields]:
    lines = raw.removesuffix(b"\r\n\r\n").split(b"\r\n")
    if len(lines) > MOST_FIELDS + 1 or b"\n" in raw.replace(b"\r\n", b"") or b"\0" in raw:
        raise Malformed
    return lines[0], tuple(map(_field, lines[1:]))


def _field(line: bytes) -> tuple[bytes, bytes]:
    name, colon, value = line.partition(b":")
    value = value.strip(b" \t")
    if not colon or not _TOKEN.fullmatch(name) or not _VALUE.fullmatch(value):
        raise Malformed
    return name, value


def _all(fields: Fields, name: bytes) -> list[bytes]:
    return [value for key, value in fields if key.lower() == name]


def _only(fields: Fields, name: bytes) -> bytes:
    found = _all(fields, name)
    if len(found) != 1 or not found[0]:
        raise Malformed
    return found[0]


def _tokens(fields: Fields, name: bytes) -> list[bytes]:
    return [token.strip(b" \t").lower() for value in _all(fields, name) for token in value.split(b",") if token.strip()]


def _request_framing(fields: Fields, minor: int) -> Framing:
    """One framing or none; both at once is how requests are smuggled."""
    lengths, codings = _all(fields, b"content-length"), _all(fields, b"transfer-encoding")
    if codings:
        if lengths or codings != [b"chunked"] or minor == 0:
            raise Malformed
        return Chunked()
    if not lengths:
        return NoBody()
    if len(lengths) > 1 or not _LENGTH.fullmatch(lengths[0]):
        raise Malformed
    return Sized(int(lengths[0])) if int(lengths[0]) else NoBody()


def _response_framing(fields: Fields, status: int, method: bytes) -> Framing:
    if method == b"HEAD" or status < 200 or status in (204, 304):
        return NoBody()
    codings = _tokens(fields, b"transfer-encoding")
    if codings:
        if codings != [b"chunked"]:
            raise Malformed
        return Chunked()
    lengths = set(_all(fields, b"content-length"))
    if not lengths:
        return UntilClose()
    if len(lengths) > 1 or not _LENGTH.fullmatch(next(iter(lengths))):
        raise Malformed
    return Sized(int(lengths.pop()))


def _asks_for_websocket(fields: Fields) -> bool:
    return b"upgrade" in _tokens(fields, b"connection") and _tokens(fields, b"upgrade") == [b"websocket"]


def _keeps_alive(fields: Fields, minor: int) -> bool:
    tokens = _tokens(fields, b"connection")
    return b"close" not in tokens and (minor == 1 or b"keep-alive" in tokens)


def _connection_lines(framing: Framing, *, websocket: bool, keeps_alive: bool) -> list[bytes]:
    lines = [b"Transfer-Encoding: chunked"] if framing == Chunked() else []
    if websocket:
        return [*lines, b"Connection: Upgrade", b"Upgrade: websocket"]
    return [*lines, b"Connection: keep-alive" if keeps_alive else b"Connection: close"]
