"""The listening socket and the loop that serves it.

uvicorn does the HTTP; its signal handling and its log stay out of the way, since
both belong to the process that embeds the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import uvicorn

from firkin.e2b.connections import Connections
from firkin.e2b.exchange import AsgiApp
from firkin.e2b.handshakes import Handshake
from firkin.e2b.protocol import SandboxProtocol
from firkin.law.errors import IoFailure
from firkin.lifetimes import Children, children

# The SDKs keep idle connections for 300 s; a server that closes first races with their next request.
IDLE_CONNECTION_S = 620
_START_WITHIN_S = 30.0
_Protocols = Callable[..., asyncio.Protocol]


async def serve(
    app: AsgiApp,
    host: str,
    port: int,
    *,
    announce: Callable[[int], None] | None = None,
    stop: asyncio.Event | None = None,
    grace_s: float = 5.0,
    tls: ssl.SSLContext | None = None,
) -> None:
    """Serve until `stop` is set. `announce` is called with the bound port once requests are answered.

    At the end no new connection is taken, and requests get `grace_s` to finish;
    streams that still run then are cut. Raises `IoFailure` when the address
    cannot be had.
    """
    async with serving(app, host, port, grace_s=grace_s, tls=tls) as bound:
        if announce is not None:
            announce(bound)
        await (stop or asyncio.Event()).wait()


@asynccontextmanager
async def serving(
    app: AsgiApp,
    host: str,
    port: int = 0,
    *,
    grace_s: float = 5.0,
    tls: ssl.SSLContext | None = None,
    most_connections: int | None = None,
) -> AsyncIterator[int]:
    """A server for the length of a block; yields the bound port. With `tls` it speaks HTTPS only.

    `most_connections`: see `Connections`.
    """
    listener = _listen(host, port)
    connections = Connections(most_connections)
    async with children() as tasks:
        server = _Server(_config(app, grace_s, connections.most // 4, _protocols(connections, tls, tasks)), grace_s)
        running = tasks.start(server.run_until_stopped(listener), name="http-server")
        try:
            await _started(server, running, tasks)
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({running}, timeout=grace_s + 5.0)
            listener.close()


async def _started(server: _Server, running: asyncio.Task[None], tasks: Children) -> None:
    up = tasks.start(server.is_up.wait(), name="http-server-up")
    await asyncio.wait({up, running}, timeout=_START_WITHIN_S, return_when=asyncio.FIRST_COMPLETED)
    if running.done():
        running.result()
    if not server.is_up.is_set():
        raise IoFailure("start", "the HTTP server", "it did not come up")


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if _is_ipv6(host) else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(4096)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise IoFailure("listen on", f"{host}:{port}", error.strerror or str(error)) from error
    return listener


def _is_ipv6(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).version == 6
    except ValueError:
        return False


def _protocols(connections: Connections, tls: ssl.SSLContext | None, tasks: Children) -> _Protocols:
    """What makes the protocol of a new connection."""
    if tls is None:
        return partial(SandboxProtocol, connections=connections)

    def secured(**given: Any) -> asyncio.Protocol:
        then = SandboxProtocol(connections=connections, **given)
        return Handshake(then, tls, connections, partial(tasks.start, name="tls-handshake"))

    return secured


def _config(app: AsgiApp, grace_s: float, backlog: int, protocols: _Protocols) -> uvicorn.Config:
    config = uvicorn.Config(
        app,
        http=protocols,  # type: ignore[arg-type]  # it is only called
        backlog=max(16, min(2048, backlog)),  # so many may be accepted before the first is counted
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="critical",
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_keep_alive=IDLE_CONNECTION_S,
        timeout_graceful_shutdown=max(1, round(grace_s + 2)),
    )
    config.load()
    return config


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers, which says when it is up and cuts streams when told to end."""

    def __init__(self, config: uvicorn.Config, grace_s: float) -> None:
        super().__init__(config)
        self.is_up = asyncio.Event()
        self._grace_s = grace_s

    async def run_until_stopped(self, listener: socket.socket) -> None:
        await self.serve(sockets=[listener])

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self.is_up.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        cut = asyncio.get_running_loop().call_later(self._grace_s, self._cut_connections)
        try:
            await super().shutdown(sockets=sockets)
        finally:
            cut.cancel()

    def _cut_connections(self) -> None:
        for connection in list(self.server_state.connections):
            connection.transport.abort()
