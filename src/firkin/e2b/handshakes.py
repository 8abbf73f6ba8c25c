"""Where a connection over TLS waits for its handshake before it is one of HTTP.

It is a client connection from the moment it is accepted, and counts as one: an
event loop that made the handshakes itself would show it only afterwards, and
whoever never says a word would hold a descriptor that nobody has counted.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Coroutine
from typing import Any, cast

from firkin.e2b.connections import Connections, Crowded

WITHIN_S = 20.0

Start = Callable[[Coroutine[Any, Any, None]], object]


class Handshake(asyncio.Protocol):
    """Of one connection, which becomes `then`'s. `start` runs its work."""

    def __init__(self, then: asyncio.Protocol, tls: ssl.SSLContext, connections: Connections, start: Start) -> None:
        self._then = then
        self._tls = tls
        self._connections = connections
        self._start = start
        self._early = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._raw = cast(asyncio.Transport, transport)
        peer = transport.get_extra_info("peername")
        try:
            self._connections.arrive(self, peer[0] if peer else "")
        except Crowded:  # which cannot be said before there is TLS
            self._raw.abort()
        else:
            # In this order: what is called here finds that `start_tls` has asked to begin, and asks to come after that.
            self._start(self._shake_hands())
            loop = asyncio.get_running_loop()
            loop.call_soon(loop.call_soon, self._pass_on)

    def evict(self) -> None:
        """See `Client`."""
        self._raw.abort()

    def data_received(self, data: bytes) -> None:
        """Of the client before there is TLS (uvloop reads at once), or decrypted, with the last of the handshake."""
        self._early += data

    def _pass_on(self) -> None:
        """TLS is at work now, and nothing has been read since: what came before is its."""
        early, self._early = memoryview(bytes(self._early)), bytearray()
        tls = cast(asyncio.BufferedProtocol, self._raw.get_protocol())  # which uvloop's is in all but name
        while early and hasattr(tls, "get_buffer"):  # else it was lost before
            room = memoryview(tls.get_buffer(len(early)))[: len(early)]
            room[:], early = early[: len(room)], early[len(room) :]
            tls.buffer_updated(len(room))

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.leave(self)

    async def _shake_hands(self) -> None:
        loop = asyncio.get_running_loop()
        if self._raw.is_closing():
            return
        try:
            transport = await loop.start_tls(
                self._raw, self, self._tls, server_side=True, ssl_handshake_timeout=WITHIN_S
            )
        except (OSError, TimeoutError):  # ssl.SSLError is one: whoever speaks something else, or has left
            self._raw.abort()
            return
        finally:
            self._connections.leave(self)
        if transport is None or transport.is_closing():  # None: it was lost meanwhile
            return
        transport.set_protocol(self._then)
        self._then.connection_made(transport)
        if self._early:
            self._then.data_received(bytes(self._early))
