"""Ports of sandboxes shown on the host's loopback: one listener each, one pair of pumps a connection."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

from firkin.law.errors import AlreadyExists, FirkinError, NotFound, PortFailure, ResourceKind
from firkin.law.ids import SandboxId
from firkin.law.ports import ByteChannel, Port, PortBinding
from firkin.lifetimes import Children

CLOSE_WITHIN_S = 5.0
_LOOPBACK = "127.0.0.1"

Connect = Callable[[], Awaitable[ByteChannel]]


@dataclass(slots=True, eq=False)
class _Exposure:
    binding: PortBinding
    server: asyncio.Server
    pumps: set[asyncio.Task[None]]


class PortExposures:
    """They last as long as the server and the sandbox do. Pumps are owned by `children`."""

    def __init__(self, children: Children) -> None:
        self._children = children
        self._open: dict[tuple[SandboxId, Port], _Exposure] = {}
        self._opening: set[tuple[SandboxId, Port]] = set()

    async def open(self, sandbox_id: SandboxId, port: Port, host_port: Port | None, connect: Connect) -> PortBinding:
        """Listen on `host_port` or any free one. `AlreadyExists`; `PortFailure` when it is taken."""
        key = (sandbox_id, port)
        if key in self._open or key in self._opening:
            raise AlreadyExists("expose a port", ResourceKind.PORT, str(int(port)))
        pumps: set[asyncio.Task[None]] = set()

        def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = self._children.start(_serve(reader, writer, connect), name=f"port {port} of {sandbox_id}")
            pumps.add(task)
            task.add_done_callback(pumps.discard)

        self._opening.add(key)
        try:
            server = await asyncio.start_server(accepted, _LOOPBACK, host_port or 0)
        except OSError as error:
            raise PortFailure("expose a port", port, f"cannot listen on {_LOOPBACK}:{host_port}: {error}") from error
        finally:
            self._opening.discard(key)
        bound = Port(server.sockets[0].getsockname()[1])
        binding = PortBinding(guest=port, host=bound)
        self._open[key] = _Exposure(binding, server, pumps)
        return binding

    def of(self, sandbox_id: SandboxId) -> dict[Port, PortBinding]:
        return {port: exposure.binding for (owner, port), exposure in self._open.items() if owner == sandbox_id}

    async def close(self, sandbox_id: SandboxId, port: Port) -> None:
        """Stop listening and end its connections. `NotFound` when it was not exposed."""
        exposure = self._open.pop((sandbox_id, port), None)
        if exposure is None:
            raise NotFound("unexpose a port", ResourceKind.PORT, str(int(port)))
        exposure.server.close()
        pumps = tuple(exposure.pumps)
        for pump in pumps:
            pump.cancel()
        if pumps:
            await asyncio.wait(pumps, timeout=CLOSE_WITHIN_S)

    async def drop(self, sandbox_id: SandboxId) -> None:
        """Close all of one sandbox."""
        for port in self.of(sandbox_id):
            with suppress(NotFound):  # closed by its owner at the same time
                await self.close(sandbox_id, port)

    async def aclose(self) -> None:
        for sandbox_id in {owner for owner, _ in self._open}:
            await self.drop(sandbox_id)


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connect: Connect) -> None:
    """One connection, both ways. A sandbox that refuses shows as a connection that closes."""
    try:
        channel = await connect()
    except FirkinError:
        writer.transport.abort()
        return
    try:
        inward = _inward(reader, channel)
        await asyncio.gather(inward, _outward(channel, writer))
    except (FirkinError, OSError):
        pass  # either side is gone; the other is told by the close below
    finally:
        writer.transport.abort() if writer.transport.is_closing() else writer.close()
        await channel.aclose()


async def _inward(reader: asyncio.StreamReader, channel: ByteChannel) -> None:
    while data := await reader.read(65536):
        await channel.write(data)
    await channel.end()


async def _outward(channel: ByteChannel, writer: asyncio.StreamWriter) -> None:
    while data := await channel.read():
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()
