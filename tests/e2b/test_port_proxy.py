"""The ports of a sandbox from outside, with a real HTTP service behind them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web

from .conftest import ALICE, RunningServer

API = {"X-API-Key": ALICE}


async def _hello(request: web.Request) -> web.Response:
    text = f"{request.method} {request.raw_path} host={request.host} got={(await request.read()).decode()}"
    return web.Response(text=text, headers=[("X-Twice", "a"), ("X-Twice", "b")])


async def _events(request: web.Request) -> web.StreamResponse:
    answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await answer.prepare(request)
    await answer.write(b"data: first\n\n")
    await request.app[GATE].wait()
    await answer.write(b"data: last\n\n")
    return answer


async def _echo(request: web.Request) -> web.WebSocketResponse:
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    async for message in socket:
        await socket.send_str(f"echo {message.data}")
    return socket


GATE: web.AppKey[asyncio.Event] = web.AppKey("gate", asyncio.Event)


@asynccontextmanager
async def service() -> AsyncIterator[tuple[int, asyncio.Event]]:
    """An HTTP service on a port of the loopback, which the fixture's sandboxes have as their own."""
    app = web.Application()
    app[GATE] = asyncio.Event()
    app.router.add_get("/events", _events)
    app.router.add_get("/ws", _echo)
    app.router.add_route("*", "/{rest:.*}", _hello)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield runner.addresses[0][1], app[GATE]
    finally:
        await runner.cleanup()


@asynccontextmanager
async def made(http: aiohttp.ClientSession, **fields: object) -> AsyncIterator[dict[str, str]]:
    async with http.post("/v2/sandboxes", json={"templateID": "base", **fields}, headers=API) as answer:
        sandbox = await answer.json()
    try:
        yield sandbox
    finally:
        async with http.delete(f"/sandboxes/{sandbox['sandboxID']}", headers=API):
            pass


@pytest.fixture
async def http(server: RunningServer) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(server.url) as session:
        yield session


def label(sandbox: dict[str, str], port: int) -> dict[str, str]:
    return {"Host": f"{port}-{sandbox['sandboxID']}.sbx.test"}


async def test_a_request_passes_through_unchanged(http: aiohttp.ClientSession) -> None:
    async with service() as (port, _), made(http) as sandbox:
        async with http.post("/a%2Fb?c=d", data=b"body", headers=label(sandbox, port)) as answer:
            host = label(sandbox, port)["Host"]
            assert await answer.text() == f"POST /a%2Fb?c=d host={host} got=body"
            assert answer.headers.getall("X-Twice") == ["a", "b"]
        routed = {"E2b-Sandbox-Id": sandbox["sandboxID"], "E2b-Sandbox-Port": str(port)}
        async with http.head("/x", headers=routed) as answer:
            assert answer.status == 200
            assert int(answer.headers["Content-Length"]) > 0


async def test_a_streamed_body_passes_through(http: aiohttp.ClientSession) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(50):
            yield b"x" * 1000

    async with (
        service() as (port, _),
        made(http) as sandbox,
        http.put("/up", data=pieces(), headers=label(sandbox, port)) as answer,
    ):
        assert (await answer.text()).endswith("x" * 50_000)


async def test_events_are_not_held_back(http: aiohttp.ClientSession) -> None:
    async with (
        service() as (port, gate),
        made(http) as sandbox,
        http.get("/events", headers=label(sandbox, port)) as answer,
    ):
        assert await asyncio.wait_for(answer.content.readline(), 5) == b"data: first\n"
        gate.set()
        assert (await answer.content.read()).endswith(b"data: last\n\n")


async def test_a_websocket_passes_through(http: aiohttp.ClientSession) -> None:
    async with (
        service() as (port, _),
        made(http) as sandbox,
        http.ws_connect("/ws", headers=label(sandbox, port)) as socket,
    ):
        for text in ("one", "x" * 100_000):
            await socket.send_str(text)
            assert (await socket.receive(timeout=5)).data == f"echo {text}"
        await socket.close()


async def test_a_killed_sandbox_ends_its_websockets(http: aiohttp.ClientSession) -> None:
    async with service() as (port, _):
        async with made(http) as sandbox:
            socket = await http.ws_connect("/ws", headers=label(sandbox, port))
        message = await socket.receive(timeout=5)
        assert message.type in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR)
        await socket.close()


async def test_a_closed_port_and_a_dead_sandbox_are_told_apart(http: aiohttp.ClientSession) -> None:
    async with made(http) as sandbox:
        async with http.get("/", headers=label(sandbox, 81)) as answer:
            assert answer.status == 502
            assert await answer.json() == {
                "sandboxId": sandbox["sandboxID"],
                "message": "The sandbox is running but port is not open",
                "port": 81,
                "code": 502,
            }
        browser = {"User-Agent": "Mozilla/5.0", "Accept": "text/html,*/*", **label(sandbox, 81)}
        async with http.get("/", headers=browser) as answer:
            assert (answer.status, answer.content_type) == (502, "text/html")
            assert "nothing listens on port <code>81</code>" in await answer.text()
    async with http.get("/", headers=label(sandbox, 81)) as answer:
        assert (answer.status, (await answer.json())["message"]) == (502, "The sandbox was not found")


async def test_closed_traffic_needs_its_token(http: aiohttp.ClientSession) -> None:
    async with service() as (port, _), made(http, network={"allowPublicTraffic": False}) as sandbox:
        name = "e2b-traffic-access-token"
        async with http.get("/", headers=label(sandbox, port)) as answer:
            assert (answer.status, (await answer.json())["header"]) == (403, name)
        async with http.get("/", headers={**label(sandbox, port), name: "wrong"}) as answer:
            assert answer.status == 403
        right = {**label(sandbox, port), name: sandbox["trafficAccessToken"]}
        async with http.get("/", headers=right) as answer:
            assert answer.status == 200


async def test_an_answer_that_is_not_http_is_told(http: aiohttp.ClientSession) -> None:
    async def nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"this is not HTTP\r\n\r\n")
        writer.close()

    listener = await asyncio.start_server(nonsense, "127.0.0.1", 0)
    async with listener, made(http) as sandbox:
        port = listener.sockets[0].getsockname()[1]
        async with http.get("/", headers=label(sandbox, port)) as answer:
            assert (answer.status, "no valid HTTP answer" in await answer.text()) == (502, True)


async def test_an_answer_that_breaks_off_is_not_taken_for_a_whole_one(http: aiohttp.ClientSession) -> None:
    async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        await writer.drain()
        writer.close()

    listener = await asyncio.start_server(half, "127.0.0.1", 0)
    async with listener, made(http) as sandbox:
        port = listener.sockets[0].getsockname()[1]
        with pytest.raises(aiohttp.ClientError):
            async with http.get("/", headers=label(sandbox, port)) as answer:
                await answer.read()
