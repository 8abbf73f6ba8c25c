"""TLS on both event loops, whenever a client's first bytes and its first request come."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop

from firkin.bootstrap.certificates import issue
from firkin.bootstrap.tls import served_certificate
from firkin.e2b.server import serving
from firkin.settings import Settings

from .test_connections import hello

Run = Callable[[Coroutine[Any, Any, None]], None]
REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


def _answer(port: int, trust: ssl.SSLContext, *, at_once: bool, step: int) -> bytes:
    """What a client is answered that sends its bytes `step` at a time, the request with the end of the handshake."""
    incoming, outgoing, answer = ssl.MemoryBIO(), ssl.MemoryBIO(), b""
    tls = trust.wrap_bio(incoming, outgoing, server_hostname="sbx.test")
    with socket.create_connection(("127.0.0.1", port)) as wire:
        wire.settimeout(10)
        wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        asked = False
        while b"hello" not in answer:
            try:
                if not asked:
                    tls.do_handshake()
                    if not at_once:
                        wire.sendall(outgoing.read())
                    tls.write(REQUEST)
                    asked = True
                answer += tls.read()
            except ssl.SSLWantReadError:
                data = outgoing.read()
                for start in range(0, len(data), step):
                    wire.sendall(data[start : start + step])
                incoming.write(wire.recv(65536))
    return answer


@pytest.mark.thorough
@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_a_first_request_is_answered_however_its_bytes_come(run: Run, tmp_path: Path) -> None:
    issue(tmp_path / "tls", "sbx.test")
    served = served_certificate(Settings(state_dir=tmp_path, tls=True, domain="sbx.test"))
    assert served is not None
    trust = ssl.create_default_context(cafile=tmp_path / "tls" / "ca.pem")

    async def scenario() -> None:
        async with serving(hello, "127.0.0.1", 0, grace_s=0.1, tls=served.context()) as port:
            for step in (100_000, 200, 7):
                for at_once in (True, False):
                    answer = await asyncio.to_thread(_answer, port, trust, at_once=at_once, step=step)
                    assert answer.startswith(b"HTTP/1.1 200 OK")

    run(scenario())
