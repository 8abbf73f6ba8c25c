"""Any other port of a sandbox: HTTP/1.1 and upgraded connections, passed through as they come.

One connection into the sandbox for each request. What the guest answers is
parsed strictly and within limits before a byte of it reaches the client.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import h11

from firkin.e2b.directory import SandboxDirectory, is_public
from firkin.e2b.error_map import closed_port, dead_sandbox, is_gone
from firkin.e2b.exchange import ClientGone, Exchange, Header, Refused
from firkin.e2b.pages import closed_port_page, dead_sandbox_page, is_browser
from firkin.e2b.routing import SandboxTarget
from firkin.e2b.signatures import equal
from firkin.e2b.tunnel import tunnel
from firkin.law.errors import FirkinError, PortFailure
from firkin.law.ports import ByteChannel
from firkin.law.sandboxes import SandboxInfo
from firkin.lifetimes import children, finish

TRAFFIC_HEADER = b"e2b-traffic-access-token"
_HOP_BY_HOP = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade"}
    | {b"proxy-authenticate", b"proxy-authorization"}
)
_OURS = frozenset({TRAFFIC_HEADER, b"e2b-sandbox-id", b"e2b-sandbox-port", b"expect"})
_MAX_HEAD = 64 * 1024
_READ = 64 * 1024
_CONNECT_WITHIN_S = 10.0
_CLOSE_WITHIN_S = 5.0


class PortProxy:
    """Passes requests on to the ports of sandboxes."""

    def __init__(self, directory: SandboxDirectory) -> None:
        self._directory = directory

    async def answer(self, exchange: Exchange, target: SandboxTarget) -> None:
        try:
            info = await self._directory.live(target.sandbox_id)
            self._check_traffic(exchange, info)
            await self._pass_on(exchange, info, target)
        except Refused as refusal:
            if refusal.status != 502 or exchange.started or not _wants_page(exchange):
                raise
            closed = "port" in refusal.more
            page = closed_port_page(info.id, target.port) if closed else dead_sandbox_page(target.sandbox_id)
            await exchange.answer(502, page, [(b"content-type", b"text/html; charset=utf-8")])

    def _check_traffic(self, exchange: Exchange, info: SandboxInfo) -> None:
        if is_public(info):
            return
        header = TRAFFIC_HEADER.decode()
        more = {"sandboxId": info.id, "header": header}
        given = exchange.text_header(TRAFFIC_HEADER)
        if given is None:
            raise Refused(403, f"Missing {header} header", more=more)
        if not equal(given, self._directory.mint.traffic(info.id)):
            raise Refused(403, f"Invalid {header} header", more=more)

    async def _pass_on(self, exchange: Exchange, info: SandboxInfo, target: SandboxTarget) -> None:
        with self._directory.holding(info.id, exchange.connection):
            async with self._connected(info, target) as channel:
                await _Passage(exchange, channel, target).run()

    @asynccontextmanager
    async def _connected(self, info: SandboxInfo, target: SandboxTarget) -> AsyncIterator[ByteChannel]:
        ports = self._directory.backend.ports
        if ports is None:
            raise Refused(501, "this server does not reach the ports of sandboxes", should_retry=False)
        try:
            async with asyncio.timeout(_CONNECT_WITHIN_S):
                channel = await ports.connect(info.id, target.port)
        except PortFailure as error:
            raise closed_port(info.id, target.port) from error
        except TimeoutError:
            raise Refused(504, f"port {target.port} did not answer within {_CONNECT_WITHIN_S:g} s") from None
        except FirkinError as error:
            raise (dead_sandbox(info.id) if is_gone(error) else error) from error
        try:
            yield channel
        finally:
            await finish(channel.aclose(), within_s=_CLOSE_WITHIN_S)


def _wants_page(exchange: Exchange) -> bool:
    return is_browser(exchange.header(b"user-agent"), exchange.header(b"accept"))


class _Passage:
    """One request on its way into the sandbox, and the answer on its way out."""

    def __init__(self, exchange: Exchange, channel: ByteChannel, target: SandboxTarget) -> None:
        self._exchange = exchange
        self._channel = channel
        self._target = target
        self._peer = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEAD)
        connection = exchange.connection
        self._upgrading = connection is not None and connection.upgraded

    async def run(self) -> None:
        await self._send(self._request())
        async with children() as tasks:
            answering = tasks.start(self._answer(), name="proxy-answer")
            uploading = tasks.start(self._send_body(), name="proxy-upload")
            await asyncio.wait({answering, uploading}, return_when=asyncio.FIRST_COMPLETED)
            if not answering.done() and uploading.result():
                raise ClientGone
            await answering

    async def _send(self, event: h11.Event) -> None:
        data = self._peer.send(event)
        if data:
            await self._channel.write(data)

    def _request(self) -> h11.Request:
        query = self._exchange.scope.get("query_string", b"")
        target = self._exchange.raw_path + (b"?" + query if query else b"")
        try:
            return h11.Request(method=self._exchange.method, target=target, headers=self._request_headers())
        except h11.LocalProtocolError as error:
            raise Refused(400, f"the request cannot be passed on: {error}", should_retry=False) from None

    def _request_headers(self) -> list[Header]:
        given = self._exchange.scope["headers"]
        dropped = _named_by_connection(given)
        headers = [
            (name, value)
            for name, value in given
            if name not in _HOP_BY_HOP and name not in _OURS and name not in dropped
        ]
        if self._exchange.header(b"transfer-encoding") is not None:
            headers = [(name, value) for name, value in headers if name != b"content-length"]
            headers.append((b"transfer-encoding", b"chunked"))
        client = self._exchange.scope.get("client")
        if client:
            headers.append((b"x-forwarded-for", str(client[0]).encode()))
        if self._upgrading:
            return [*headers, (b"connection", b"upgrade"), (b"upgrade", self._exchange.header(b"upgrade") or b"")]
        return [*headers, (b"connection", b"close")]

    async def _send_body(self) -> bool:
        """Pass the request's body on, then wait. Whether the client has gone."""
        try:
            async for chunk in self._exchange.chunks(idle_s=None):
                await self._send(h11.Data(data=chunk))
            await self._send(h11.EndOfMessage())
        except ClientGone:
            return True
        except (h11.LocalProtocolError, OSError, FirkinError):
            return False  # the guest wants no more of it; what it answers decides
        if self._upgrading:
            return False
        await self._exchange.disconnected()
        return True

    async def _answer(self) -> None:
        try:
            while True:
                event = await self._event()
                match event:
                    case h11.InformationalResponse(status_code=101):
                        await self._switch(event)
                        return
                    case h11.InformationalResponse():
                        continue
                    case h11.Response():
                        await self._start(event)
                    case h11.Data():
                        await self._exchange.write(bytes(event.data))
                    case _:
                        await self._exchange.write(b"", more=False)
                        return
        except h11.RemoteProtocolError as error:
            if self._exchange.started:
                raise ClientGone from error  # a broken answer ends in a broken connection, never in a whole one
            raise Refused(
                502, f"the service on port {self._target.port} gave no valid HTTP answer", should_retry=False
            ) from error

    async def _event(self) -> object:
        while True:
            event = self._peer.next_event()
            if event is not h11.NEED_DATA:
                return event
            try:
                data = await self._channel.read(_READ)
            except OSError:
                data = b""
            self._peer.receive_data(data)

    async def _start(self, response: h11.Response) -> None:
        given = [(bytes(name), bytes(value)) for name, value in response.headers]
        dropped = _named_by_connection(given)
        headers = [(name, value) for name, value in given if name not in _HOP_BY_HOP and name not in dropped]
        if response.status_code > 599:
            raise h11.RemoteProtocolError(f"status {response.status_code} is not one of HTTP")
        if response.status_code in (204, 304):
            headers = [(name, value) for name, value in headers if name != b"content-length"]
        await self._exchange.start_plain(response.status_code, headers)

    async def _switch(self, response: h11.InformationalResponse) -> None:
        connection = self._exchange.connection
        if connection is None:
            raise Refused(501, "this server cannot upgrade connections", should_retry=False)
        lines = [b"HTTP/1.1 101 Switching Protocols"]
        lines += [bytes(name) + b": " + bytes(value) for name, value in response.headers]
        connection.take_over(b"\r\n".join([*lines, b"", b""]))
        self._exchange.started = True
        early, _ = self._peer.trailing_data
        if early:
            await connection.write(early)
        await tunnel(connection, self._channel)


def _named_by_connection(headers: list[Header]) -> set[bytes]:
    """Headers that the ``Connection`` header declares to be for one hop only."""
    return {word.strip().lower() for name, value in headers if name == b"connection" for word in value.split(b",")}
