"""HTTP/1.1 on one client connection, with the three things ASGI cannot say.

A sandbox that ends resets its clients' connections (TCP RST: the SDKs read a
clean end as something else); an upgraded connection becomes a raw tunnel; and a
request head has a size limit and a deadline.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from typing import Any, NoReturn

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

CONNECTION = "firkin.connection"
MAX_HEAD_BYTES = 64 * 1024
HEAD_WITHIN_S = 30.0
_TUNNEL_BUFFER = 256 * 1024
_RESET = struct.pack("ii", 1, 0)


class SandboxProtocol(HttpToolsProtocol):
    """uvicorn's protocol; each request's scope carries its `ClientConnection`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._client = ClientConnection(self)
        self._head_bytes = 0
        self._hosts = 0
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]  # uvicorn narrows the parameter
        self._head_timer = self.loop.call_later(HEAD_WITHIN_S, self.transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_timer()
        self._client.lost()
        super().connection_lost(exc)

    def eof_received(self) -> bool | None:  # type: ignore[override]  # asyncio's own contract: True keeps it open
        return self._client.ended_by_peer()

    def data_received(self, data: bytes) -> None:
        if self._client.upgraded:
            self._client.feed(data)
            return
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._client.upgraded = True
            self.cycle.keep_alive = False
            self._client.feed(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self.send_400_response("the request is not valid HTTP/1.1")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {CONNECTION: self._client}  # type: ignore[dict-item]  # ASGI's type has dicts only
        self._head_bytes = 0
        self._hosts = 0
        self._await_head()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value) + 4)
        match name.lower():
            case b"host":
                self._hosts += 1
                if self._hosts > 1:  # whoever looks at the other one would send it elsewhere
                    self._give_up(400, "the request has more than one Host header")
            case b"transfer-encoding" if value.strip().lower() != b"chunked":
                self._give_up(501, "the only Transfer-Encoding spoken here is chunked")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._stop_head_timer()
        super().on_headers_complete()

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD_BYTES:
            self._give_up(431, f"the request head is larger than {MAX_HEAD_BYTES} bytes")

    def _give_up(self, status: int, message: str) -> NoReturn:
        """Refuse from within the parser, which has to be stopped."""
        self._refuse(status, message)
        raise ValueError(message)

    def _await_head(self) -> None:
        self._stop_head_timer()
        self._head_timer = self.loop.call_later(HEAD_WITHIN_S, self._head_is_late)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        self._refuse(408, f"the request head did not arrive within {HEAD_WITHIN_S:.0f} s")

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, msg)

    def _refuse(self, status: int, message: str) -> None:
        if self.transport.is_closing():
            return
        body = json.dumps({"code": status, "message": message}).encode()
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
        self.transport.write(STATUS_LINE[status] + head + body)
        self.transport.close()


class ClientConnection:
    """What a handler may do to the client's connection beyond answering.

    As a tunnel it is a `ByteChannel`: `take_over` first, then read and write.
    """

    def __init__(self, protocol: SandboxProtocol) -> None:
        self._protocol = protocol
        self._received = bytearray()
        self._arrived = asyncio.Event()
        self._finished = False
        self._closed = asyncio.Event()
        self.upgraded = False

    def reset(self) -> None:
        """End the connection with a TCP RST, dropping what was not sent."""
        transport = self._protocol.transport
        raw = transport.get_extra_info("socket")
        if raw is not None and not transport.is_closing():
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        transport.abort()

    def take_over(self, head: bytes) -> None:
        """Send `head` as the answer; from now on the connection carries raw bytes."""
        cycle = self._protocol.cycle
        cycle.response_started = cycle.response_complete = True
        self._protocol._unset_keepalive_if_required()
        self._protocol.transport.write(head)

    async def closed(self) -> None:
        """Return when the connection has ended."""
        await self._closed.wait()

    async def read(self, limit: int = 65536) -> bytes:
        while not self._received and not self._finished:
            self._arrived.clear()
            await self._arrived.wait()
        data = bytes(self._received[:limit])
        del self._received[:limit]
        if len(self._received) <= _TUNNEL_BUFFER:
            self._protocol.flow.resume_reading()
        return data

    async def write(self, data: bytes) -> None:
        if self._protocol.transport.is_closing():
            return
        self._protocol.transport.write(data)
        if self._protocol.flow.write_paused:
            await self._protocol.flow.drain()

    async def end(self) -> None:
        if not self._protocol.transport.is_closing() and self._protocol.transport.can_write_eof():
            self._protocol.transport.write_eof()

    async def aclose(self) -> None:
        self._protocol.transport.close()

    def feed(self, data: bytes) -> None:
        self._received += data
        if len(self._received) > _TUNNEL_BUFFER:
            self._protocol.flow.pause_reading()
        self._arrived.set()

    def ended_by_peer(self) -> bool | None:
        """A half-closed tunnel stays open for the other direction; a half-closed request does not."""
        self._finished = True
        self._arrived.set()
        return True if self.upgraded else None

    def lost(self) -> None:
        self._finished = True
        self._arrived.set()
        self._closed.set()
