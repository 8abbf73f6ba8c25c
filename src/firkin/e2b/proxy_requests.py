"""The head of a request as it is passed into a sandbox.

What belongs to one connection, or to us, stays outside; the framing of the body
is written anew, whatever the client's ``Connection`` header declares.
"""

from __future__ import annotations

import re

from firkin.e2b.directory import LABEL_MASK_HOST
from firkin.e2b.exchange import Exchange, Header, Refused
from firkin.e2b.operators import OPERATOR_HEADER
from firkin.e2b.proxy_answers import HOP_BY_HOP
from firkin.law.ports import Port
from firkin.law.sandboxes import SandboxInfo

TRAFFIC_HEADER = b"e2b-traffic-access-token"
_OURS = frozenset({TRAFFIC_HEADER, OPERATOR_HEADER.lower().encode(), b"e2b-sandbox-id", b"e2b-sandbox-port", b"expect"})
_REWRITTEN = frozenset({b"host", b"content-length", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto"})
_DROPPED = HOP_BY_HOP | _OURS | _REWRITTEN
_HOST = re.compile(rb"[\x21-\x7e]{1,255}")


def masked_host(info: SandboxInfo, port: Port) -> bytes | None:
    """The Host that services of this sandbox are to see; None: the client's own. Raises `Refused`."""
    mask = info.labels.get(LABEL_MASK_HOST)
    if not mask:
        return None
    host = mask.replace("${PORT}", str(int(port))).encode("utf-8", "replace")
    if _HOST.fullmatch(host) is None:
        raise Refused(
            400, "the sandbox's maskRequestHost is not a host name; create it with another", should_retry=False
        )
    return host


def has_body(exchange: Exchange) -> bool:
    return exchange.header(b"transfer-encoding") is not None or exchange.header(b"content-length") not in (None, b"0")


def request_head(exchange: Exchange, *, mask: bytes | None, upgrade: bytes | None, lasting: bool) -> bytes:
    """The bytes to send inside. Raises `Refused` for a request that cannot be passed on.

    `lasting` asks the service to keep the connection for another request.
    """
    query = exchange.scope.get("query_string", b"")
    target = exchange.raw_path + b"?" + query if query else exchange.raw_path
    fields = [
        exchange.method.encode() + b" " + target + b" HTTP/1.1",
        b"host: " + (mask or exchange.header(b"host") or b""),
    ]
    given: list[Header] = exchange.scope["headers"]
    dropped = _DROPPED | _named_by_connection(given)
    fields += [name + b": " + value for name, value in given if name not in dropped]
    fields += _forwarded(exchange, mask)
    fields += _framing(exchange)
    if upgrade is not None:
        fields += [b"connection: upgrade", b"upgrade: " + upgrade]
    elif not lasting:
        fields.append(b"connection: close")
    head = b"\r\n".join([*fields, b"", b""])
    if head.count(b"\n") != len(fields) + 1 or head.count(b"\r") != len(fields) + 1 or b"\0" in head:
        raise Refused(400, "the request has a header with a line break in it", should_retry=False)
    return head


def _framing(exchange: Exchange) -> list[bytes]:
    if exchange.header(b"transfer-encoding") is not None:
        return [b"transfer-encoding: chunked"]
    length = exchange.header(b"content-length")
    return [] if length is None else [b"content-length: " + length]


def _forwarded(exchange: Exchange, mask: bytes | None) -> list[bytes]:
    """Who asked, and how: a proxy in front of us knows better, so what it says is kept, and its own address added."""
    chain = [value for name, value in exchange.scope["headers"] if name == b"x-forwarded-for" and value]
    client = exchange.scope.get("client")
    if client:
        chain.append(str(client[0]).encode())
    proto = exchange.header(b"x-forwarded-proto") or exchange.scope.get("scheme", "http").encode()
    host = exchange.header(b"host") or b""
    if mask is None:
        host = exchange.header(b"x-forwarded-host") or host
    return [
        b"x-forwarded-for: " + b", ".join(chain),
        b"x-forwarded-proto: " + proto,
        b"x-forwarded-host: " + host,
    ]


def _named_by_connection(given: list[Header]) -> set[bytes]:
    """Headers that the ``Connection`` header declares to be for one hop only."""
    return {
        word.strip().lower()
        for name, value in given
        if name == b"connection" and value not in (b"keep-alive", b"close")
        for word in value.split(b",")
    }
