"""Clients that go without a word, and tenants whose ports would take all: what the server holds stays bounded."""

from __future__ import annotations

import asyncio
import resource
import socket
import struct

import pytest

from firkin.e2b import port_proxy, proxy_passage, tunnel

from .conftest import RunningServer
from .guest_services import PATIENCE_S, listening, sandbox, saying, wire


@pytest.fixture
def one_a_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    """One connection at a time, so that the next is let in only when the one before was given up."""
    monkeypatch.setattr(port_proxy, "MOST_A_SANDBOX", 1)


@pytest.mark.thorough
@pytest.mark.usefixtures("one_a_sandbox")
async def test_a_tunnel_whose_client_said_its_last_is_closed(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tunnel, "ABANDONED_AFTER_S", 0.2)
    silent = asyncio.Event()

    async def service(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Takes the end of what the client says for no end of its own."""
        await reader.read()
        await silent.wait()

    async with sandbox(server) as made, listening(service) as port, wire(server, made, port) as client:
        client.say(f"CONNECT {client.host} HTTP/1.1")
        assert (await client.head()).startswith(b"HTTP/1.1 200 ")
        client.writer.write_eof()
        assert await client.rest() == b""
        await _next_is_let_in(server, made)
        silent.set()


@pytest.mark.thorough
@pytest.mark.usefixtures("one_a_sandbox")
@pytest.mark.parametrize("first", ["CONNECT {host} HTTP/1.1", f"POST / HTTP/1.1\r\nContent-Length: {1 << 30}"])
async def test_a_client_that_went_while_the_service_took_nothing_is_given_up(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    monkeypatch.setattr(tunnel, "ABANDONED_AFTER_S", 0.2)
    monkeypatch.setattr(proxy_passage, "_LOOK_EVERY_S", 0.1)
    silent = asyncio.Event()

    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await silent.wait()

    async with sandbox(server) as made, listening(deaf) as port, wire(server, made, port) as client:
        client.say(first.format(host=client.host))
        client.writer.write(bytes(64 << 20))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await client.writer.drain()
        client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.writer.transport.abort()
        await _next_is_let_in(server, made)
        silent.set()


@pytest.mark.thorough
@pytest.mark.usefixtures("one_a_sandbox")
async def test_one_sandbox_cannot_take_the_connections_of_all(server: RunningServer) -> None:
    gate = asyncio.Event()

    async def service(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await gate.wait()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async with (
        sandbox(server) as made,
        sandbox(server) as other,
        listening(service) as port,
        wire(server, made, port) as first,
        wire(server, made, port) as second,
        wire(server, other, port) as third,
    ):
        first.say(f"CONNECT {first.host} HTTP/1.1")
        assert (await first.head()).startswith(b"HTTP/1.1 200 ")
        second.say("GET / HTTP/1.1", "Connection: close")
        refused = await second.rest()
        assert refused.startswith(b"HTTP/1.1 429 ")
        assert b"retry-after: 1" in refused
        assert b"1 connections to the ports of this sandbox" in refused
        gate.set()
        third.say("GET / HTTP/1.1", "Connection: close")
        assert (await third.rest()).endswith(b"ok"), "another sandbox has its own count"


@pytest.mark.thorough
async def test_one_owner_cannot_take_the_connections_of_all(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = int(resource.getrlimit(resource.RLIMIT_NOFILE)[0] * port_proxy.MOST_OF_THE_DESCRIPTORS / 2)
    monkeypatch.setattr(port_proxy, "MOST_AN_OWNER", 1.5 / most)

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with (
        sandbox(server) as made,
        sandbox(server) as other,
        listening(silent) as port,
        wire(server, made, port) as first,
        wire(server, other, port) as second,
    ):
        first.say(f"CONNECT {first.host} HTTP/1.1")
        assert (await first.head()).startswith(b"HTTP/1.1 200 ")
        second.say("GET / HTTP/1.1", "Connection: close")
        assert b"1 connections to ports of sandboxes of this API key" in await second.rest()


async def _next_is_let_in(server: RunningServer, made: dict[str, str]) -> None:
    async with asyncio.timeout(PATIENCE_S), listening(saying(b"HTTP/1.1 204 No Content\r\n\r\n")) as port:
        while True:
            async with wire(server, made, port) as client:
                client.say("GET / HTTP/1.1", "Connection: close")
                if (await client.rest()).startswith(b"HTTP/1.1 204 "):
                    return
            await asyncio.sleep(0.02)
