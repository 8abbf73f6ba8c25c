"""Programs that listen on a port, in an instance in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

from firkin.drivers.memory.calls import Call
from firkin.drivers.memory.pipes import BrokenPipe, MemoryChannel
from firkin.drivers.memory.tree import Fault
from firkin.lifetimes import children

_BACKLOG = 128


async def _listen(call: Call, port: int, serve: Callable[[MemoryChannel], Awaitable[None]]) -> int:
    """Accept connections on `port` until the process ends."""
    if port in call.machine.listeners:
        return await call.fail(f"port {port}: Address already in use")
    arrived: asyncio.Queue[MemoryChannel] = asyncio.Queue(_BACKLOG)

    def accept(channel: MemoryChannel) -> None:
        try:
            arrived.put_nowait(channel)
        except asyncio.QueueFull:
            raise Fault("refused", f"too many connections wait on port {port}") from None

    call.machine.listeners[port] = accept
    try:
        async with children() as serving:
            while True:
                work = partial(_served, serve, await arrived.get())
                serving.start(call.machine.gate.hold(work), name=f"connection to port {port}")
    finally:
        del call.machine.listeners[port]


async def _served(serve: Callable[[MemoryChannel], Awaitable[None]], channel: MemoryChannel) -> None:
    try:
        await serve(channel)
    except (BrokenPipe, ConnectionError):
        return
    finally:
        await channel.aclose()


async def _echoserver(call: Call) -> int:
    """``echoserver PORT``: sends back what each connection sends."""

    async def serve(channel: MemoryChannel) -> None:
        while data := await channel.read():
            await channel.write(data)
        await channel.end()
        await asyncio.sleep(0)

    return await _listen(call, int(call.argv[1]), serve)


async def _httpserver(call: Call) -> int:
    """``httpserver PORT``: answers GET with the files of its directory, one request a connection."""

    async def serve(channel: MemoryChannel) -> None:
        head = b""
        while b"\r\n\r\n" not in head and len(head) < 65536:
            data = await channel.read()
            if not data:
                return
            head += data
        words = head.split(b" ")
        name = words[1].decode("latin-1").partition("?")[0] if len(words) > 1 else "/"
        status, body = _found(call, name)
        length = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        await channel.write(length.encode() + body)
        await channel.end()

    return await _listen(call, int(call.argv[1]), serve)


def _found(call: Call, name: str) -> tuple[str, bytes]:
    try:
        return "200 OK", call.read_file(call.path(name.lstrip("/") or "index.html"))
    except Fault as fault:
        return "404 Not Found", f"{fault.message}\n".encode("utf-8", "surrogateescape")


NETWORK_PROGRAMS: Mapping[str, Callable[[Call], Awaitable[int]]] = {
    "echoserver": _echoserver,
    "httpserver": _httpserver,
}
