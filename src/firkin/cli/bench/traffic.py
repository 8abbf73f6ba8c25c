"""Bytes through the server: requests to a port inside, large downloads from it, and files up and down."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

from firkin.cli.bench.machine import processor_s
from firkin.cli.bench.raw_http import Inside, RawCaller
from firkin.cli.bench.samples import Lifecycle, Series
from firkin.cli.bench.stage import Stage
from firkin.cli.client import ENVD_PORT, ServerClient
from firkin.cli.failures import CommandFailure
from firkin.lifetimes import children

PORT = 8000
_WITHOUT_PYTHON = ("memory",)  # drivers whose sandboxes cannot run the service
_CONNECTIONS = 16
_REQUESTS_S = 3.0
_LARGE = 1 << 30
_PIECE = 1 << 20
_UP_WITHIN_S = 20.0
_MOVE_WITHIN_S = 300.0

# Answers every request with two bytes, or with `_LARGE` zero bytes for a path that holds "large".
_SERVICE = f"""
import socket, threading
SMALL = b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\nContent-Type: text/plain\\r\\n\\r\\nok"
LARGE = b"HTTP/1.1 200 OK\\r\\nContent-Length: {_LARGE}\\r\\n\\r\\n"
BLOCK = bytes({_PIECE})
def serve(peer):
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while data := peer.recv(65536):
        if b"large" in data.split(b"\\r\\n", 1)[0]:
            peer.sendall(LARGE)
            for _ in range({_LARGE // _PIECE}):
                peer.sendall(BLOCK)
        else:
            peer.sendall(SMALL * data.count(b"\\r\\n\\r\\n"))
listener = socket.create_server(("127.0.0.1", {PORT}), backlog=512)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""


async def traffic(stage: Stage) -> list[Series]:
    """Rates; the server's own processor time beside those of small requests, where its process is known."""
    async with ServerClient(stage.address) as server, RawCaller(stage) as caller:
        inside, _ = await caller.create()
        sandbox_id = inside.sandbox_id
        try:
            found: list[Series] = []
            if stage.system not in _WITHOUT_PYTHON:
                async with _service(server, sandbox_id):
                    found += await _small_requests(stage, sandbox_id)
                    found.append(await _download(stage, sandbox_id))
            found += await _files(stage, inside)
            return found
        finally:
            await caller.kill(inside)


@asynccontextmanager
async def _service(server: ServerClient, sandbox_id: str) -> AsyncIterator[None]:
    body = {"process": {"cmd": "python3", "args": ["-c", _SERVICE]}, "stdin": False}
    running = server.stream(sandbox_id, "process.Process/Start", body, user=None)
    try:
        await anext(running)
        yield
    finally:
        await running.aclose()  # type: ignore[attr-defined]  # an async generator


def _head(stage: Stage, sandbox_id: str, method: str, path: str, port: int | str, more: str = "") -> bytes:
    host = urlsplit(stage.address.url).netloc
    head = f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nE2b-Sandbox-Id: {sandbox_id}\r\nE2b-Sandbox-Port: {port}\r\n"
    return (head + more + "\r\n").encode()


async def _connect(stage: Stage) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    parts = urlsplit(stage.address.url)
    return await asyncio.open_connection(parts.hostname, parts.port or 80, limit=4 * _PIECE)


async def _small_requests(stage: Stage, sandbox_id: str) -> list[Series]:
    request = _head(stage, sandbox_id, "GET", "/", PORT)
    await _until_it_answers(stage, request)
    before, began = processor_s(stage.address.pid), time.perf_counter()
    until = began + _REQUESTS_S
    async with children() as clients:
        counts = await asyncio.gather(
            *(clients.start(_ask(stage, request, until), name=f"client {at}") for at in range(_CONNECTIONS))
        )
    took_s, spent_s = time.perf_counter() - began, processor_s(stage.address.pid) - before
    answered, failures = sum(count for count, _ in counts), sum(failed for _, failed in counts)
    workload = f"GET of two bytes from a port inside, {_CONNECTIONS} connections that stay open, for {_REQUESTS_S:g} s"
    rate = answered / took_s
    found = [
        stage.series("proxy.requests_per_s", [rate], Lifecycle.HOT, workload, unit="1/s", failures=failures),
    ]
    if spent_s > 0:
        per_core = answered / spent_s
        workload = "the same, for each second of processor time of the server's process"
        found.append(stage.series("proxy.requests_per_core_s", [per_core], Lifecycle.HOT, workload, unit="1/s"))
    return found


async def _until_it_answers(stage: Stage, request: bytes) -> None:
    deadline = time.perf_counter() + _UP_WITHIN_S
    while time.perf_counter() < deadline:
        reader, writer = await _connect(stage)
        try:
            writer.write(request)
            if (await reader.readline()).startswith(b"HTTP/1.1 200"):
                return
        finally:
            writer.close()
        await asyncio.sleep(0.05)
    raise CommandFailure(f"the service inside did not answer on port {PORT} within {_UP_WITHIN_S:g} s")


async def _ask(stage: Stage, request: bytes, until: float) -> tuple[int, int]:
    """How many answers there were, and how many were wrong."""
    answered = failures = 0
    reader, writer = await _connect(stage)
    try:
        while time.perf_counter() < until:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            if head.startswith(b"HTTP/1.1 200") and await reader.readexactly(2) == b"ok":
                answered += 1
            else:
                failures += 1
                break
    except (OSError, asyncio.IncompleteReadError):
        failures += 1
    finally:
        writer.close()
    return answered, failures


async def _download(stage: Stage, sandbox_id: str) -> Series:
    values = [await _pull(stage, _head(stage, sandbox_id, "GET", "/large", PORT)) for _ in range(3)]
    workload = f"GET of {_LARGE >> 20} MB from a port inside"
    return _several(stage, "proxy.download_mb_per_s", values, workload)


async def _pull(stage: Stage, request: bytes) -> float:
    """MB/s of one answer."""
    reader, writer = await _connect(stage)
    try:
        async with asyncio.timeout(_MOVE_WITHIN_S):
            began = time.perf_counter()
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200"):
                raise CommandFailure(f"a download was answered with {head[:64]!r}")
            left = _LARGE
            while left:
                data = await reader.read(_PIECE)
                if not data:
                    raise CommandFailure("a download broke off")
                left -= len(data)
            return _LARGE / 1e6 / (time.perf_counter() - began)
    finally:
        writer.close()


async def _files(stage: Stage, inside: Inside) -> list[Series]:
    """Through ``/files``."""
    size = max(1, stage.amounts.dirty) * _PIECE
    values = [await _push(stage, inside.sandbox_id, inside.token, size) for _ in range(3)]
    workload = f"POST /files of {size >> 20} MB, octet-stream"
    return [_several(stage, "files.upload_mb_per_s", values, workload)]


async def _push(stage: Stage, sandbox_id: str, token: str, size: int) -> float:
    more = f"X-Access-Token: {token}\r\nContent-Type: application/octet-stream\r\nContent-Length: {size}\r\n"
    reader, writer = await _connect(stage)
    block = os.urandom(_PIECE)
    try:
        async with asyncio.timeout(_MOVE_WITHIN_S):
            began = time.perf_counter()
            writer.write(_head(stage, sandbox_id, "POST", "/files?path=/home/user/large", ENVD_PORT, more))
            for _ in range(size // _PIECE):
                writer.write(block)
                await writer.drain()
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200"):
                raise CommandFailure(f"an upload was answered with {head[:64]!r}")
            return size / 1e6 / (time.perf_counter() - began)
    finally:
        writer.close()


def _several(stage: Stage, metric: str, values: list[float], workload: str) -> Series:
    return stage.series(metric, values, Lifecycle.HOT, workload, unit="MB/s")
