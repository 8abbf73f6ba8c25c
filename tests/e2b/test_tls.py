"""The same server over TLS."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiohttp
import pytest

from firkin.bootstrap.certificates import issue
from firkin.bootstrap.tls import served_certificate
from firkin.drivers.memory import MemoryDriver, MemoryRootPreparer
from firkin.e2b.app import build_app
from firkin.e2b.auth import ApiKey
from firkin.e2b.server import serving
from firkin.e2b.settings import ServerSettings
from firkin.engine.backend import LocalBackend
from firkin.law.ids import TemplateId
from firkin.law.policies import DeadlinePolicy, Policies
from firkin.law.templates import TemplateSpec
from firkin.settings import Settings

from .conftest import ALICE, SECRET, BackendWithLoopback
from .guest_services import PATIENCE_S, Wire, listening
from .test_port_proxy import service

API = {"X-API-Key": ALICE}


@asynccontextmanager
async def secure(folder: Path, most_connections: int | None = None) -> AsyncIterator[tuple[int, ssl.SSLContext]]:
    """A server; yields its port and what a client that trusts it uses."""
    issue(folder / "tls", "sbx.test")
    served = served_certificate(Settings(state_dir=folder, tls=True, domain="sbx.test"))
    assert served is not None
    backend = LocalBackend(driver=MemoryDriver(), preparer=MemoryRootPreparer(), state_dir=folder / "state")
    await backend.start(Policies(deadlines=DeadlinePolicy(max_timeout_s=None)))
    try:
        await backend.templates.prepare(TemplateSpec.host(id=TemplateId("base")))
        app = build_app(
            BackendWithLoopback(backend), [ApiKey("alice", ALICE)], ServerSettings(secret=SECRET, domain="sbx.test")
        )
        tls = served.context()
        async with serving(app, "127.0.0.1", 0, grace_s=0.5, tls=tls, most_connections=most_connections) as port:
            yield port, ssl.create_default_context(cafile=folder / "tls" / "ca.pem")
    finally:
        await backend.aclose(kill_all=True)


@asynccontextmanager
async def made(port: int, trust: ssl.SSLContext) -> AsyncIterator[tuple[aiohttp.ClientSession, str]]:
    """A session with the control plane, and a sandbox's id."""
    connector = aiohttp.TCPConnector(ssl=trust)
    async with aiohttp.ClientSession(f"https://127.0.0.1:{port}", headers=API, connector=connector) as http:
        async with http.post("/v2/sandboxes", json={"templateID": "base"}) as answer:
            sandbox_id = (await answer.json())["sandboxID"]
        yield http, sandbox_id


@asynccontextmanager
async def wire(port: int, trust: ssl.SSLContext, sandbox_id: str, inside: int) -> AsyncIterator[Wire]:
    """A client's connection that checks the certificate for the sandbox's own name."""
    host = f"{inside}-{sandbox_id}.sbx.test"
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trust, server_hostname=host)
    try:
        yield Wire(reader, writer, host)
    finally:
        writer.transport.abort()


@pytest.mark.thorough
async def test_who_never_shakes_hands_is_counted_and_does_not_keep_others_out(tmp_path: Path) -> None:
    async with secure(tmp_path, most_connections=20) as (port, trust), made(port, trust) as (http, _):
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(60)]
        async with asyncio.timeout(5):
            for reader, _ in silent[:20]:
                with suppress(ConnectionResetError):
                    assert await reader.read() == b""
            async with http.get("/health") as answer:
                assert answer.status == 200
        for _, writer in silent:
            writer.transport.abort()


@pytest.mark.thorough
async def test_who_speaks_something_else_than_tls_is_closed(tmp_path: Path) -> None:
    async with secure(tmp_path) as (port, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        async with asyncio.timeout(5):
            with suppress(ConnectionResetError):
                await reader.read()
        writer.transport.abort()


@pytest.mark.thorough
async def test_a_service_is_reached_and_told_the_scheme(tmp_path: Path) -> None:
    async def repeat(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(head), head))
        await writer.drain()

    async with secure(tmp_path) as (port, trust), made(port, trust) as (_, sandbox_id), listening(repeat) as inside:
        trust.set_alpn_protocols(["h2", "http/1.1"])
        async with wire(port, trust, sandbox_id, inside) as client:
            talk = client.writer.get_extra_info("ssl_object")
            assert (talk.version(), talk.selected_alpn_protocol()) == ("TLSv1.3", "http/1.1")
            client.say("GET / HTTP/1.1", "Connection: close")
            assert b"x-forwarded-proto: https\r\n" in await client.rest()


@pytest.mark.thorough
async def test_old_tls_and_plain_http_get_nothing(tmp_path: Path) -> None:
    async with secure(tmp_path) as (port, trust):
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            trust.minimum_version = trust.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.open_connection("127.0.0.1", port, ssl=trust, server_hostname="localhost")
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        with suppress(ConnectionError):
            assert b"HTTP/1.1" not in await asyncio.wait_for(reader.read(), PATIENCE_S)
        writer.close()


@pytest.mark.thorough
async def test_a_websocket_and_a_tunnel_pass_through(tmp_path: Path) -> None:
    async def shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.readexactly(3)).upper())
        await writer.drain()

    async with secure(tmp_path) as (port, trust), made(port, trust) as (http, sandbox_id), service() as (inside, _):
        label = {"Host": f"{inside}-{sandbox_id}.sbx.test"}
        async with http.ws_connect("/ws", headers=label) as socket:
            await socket.send_str("x" * 100_000)
            assert (await socket.receive(timeout=PATIENCE_S)).data == "echo " + "x" * 100_000
        async with listening(shout) as other, wire(port, trust, sandbox_id, other) as client:
            client.say(f"CONNECT {client.host} HTTP/1.1")
            assert b" 200 " in await client.head()
            client.writer.write(b"abc")
            assert await client.rest() == b"ABC", "and what ended inside ends here"


@pytest.mark.thorough
async def test_a_killed_sandbox_resets_its_connections(tmp_path: Path) -> None:
    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nbegun")
        await reader.read()

    async with (
        secure(tmp_path) as (port, trust),
        made(port, trust) as (http, sandbox_id),
        listening(endless) as inside,
        wire(port, trust, sandbox_id, inside) as client,
    ):
        client.say("GET / HTTP/1.1")
        await client.until(b"begun")
        async with http.delete(f"/sandboxes/{sandbox_id}") as answer:
            assert answer.status == 204
        with pytest.raises(ConnectionResetError):
            await client.rest()
