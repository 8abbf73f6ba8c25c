"""TLS over a connection that was there before."""

from __future__ import annotations

import asyncio
import gc
import ssl
import weakref
from pathlib import Path

import pytest

from firkin.gateway.authorities import Issuer, new_authority
from firkin.gateway.dialling import Stream, over_tls

HOST = "server.test"


@pytest.mark.asyncio
async def test_a_connection_lives_as_long_as_the_tls_over_it(tmp_path: Path) -> None:
    """From Python 3.12 on a writer that nobody holds closes what it writes to."""
    authority = new_authority([HOST])
    (tmp_path / "leaf").write_text(Issuer(authority.certificate, authority.key).leaf(HOST))
    shown = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    shown.load_cert_chain(tmp_path / "leaf")
    held = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    held.load_verify_locations(cadata=authority.certificate)

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readexactly(5))
        await writer.drain()
        writer.transport.abort()

    server = await asyncio.start_server(echo, "127.0.0.1", 0, ssl=shown)
    async with asyncio.timeout(10), server:
        plain = Stream(*await asyncio.open_connection(*server.sockets[0].getsockname()))
        writer = weakref.ref(plain.writer)
        secured = await over_tls(plain, held, HOST)
        del plain
        gc.collect()
        assert writer() is not None
        secured.writer.write(b"hello")
        assert await secured.reader.readexactly(5) == b"hello"
        secured.writer.transport.abort()
