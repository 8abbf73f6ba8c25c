"""Names to addresses, asked of the resolvers of the host or of a policy, with a bounded memory.

A gateway has a network of its own, in which the host's resolver may be out of
reach (127.0.0.53, say): for that it is given sockets that are connected to it.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections import OrderedDict
from collections.abc import Sequence
from typing import cast

from firkin.gateway.dns_messages import Addresses, Code, MalformedMessage, ask, parse_addresses

_PATIENCE_S = 1.5
_ROUNDS = 2
_MOST_KEPT = 4096
_MOST_ADDRESSES = 16
_LEAST_TTL_S, _MOST_TTL_S, _FAILURE_TTL_S = 5, 300, 5
_PORT = 53


class Unresolved(Exception):
    """No address was found. `code` is what the resolver said."""

    def __init__(self, code: int) -> None:
        super().__init__(f"code {code}")
        self.code = code


class _Conversation(asyncio.DatagramProtocol):
    """Questions and answers over one connected socket. An answer must be to its question, to the letter."""

    def __init__(self) -> None:
        self._waiting: dict[int, tuple[str, asyncio.Future[Addresses]]] = {}
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)  # asyncio's own is not declared as one

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        number = int.from_bytes(data[:2], "big")
        name, future = self._waiting.get(number, ("", None))
        if future is None or future.done():
            return
        try:
            future.set_result(parse_addresses(data, number, name))
        except MalformedMessage:
            return  # forged or broken: the true one may still come

    def error_received(self, exc: Exception) -> None:
        """Nobody listens there; the patience ends the question."""

    async def ask(self, name: str) -> Addresses:
        """Raises `TimeoutError`."""
        assert self._transport is not None
        number = secrets.randbelow(65536)
        while number in self._waiting:
            number = secrets.randbelow(65536)
        spelled = "".join(letter.upper() if secrets.randbits(1) else letter for letter in name)
        future: asyncio.Future[Addresses] = asyncio.get_running_loop().create_future()
        self._waiting[number] = (spelled, future)
        try:
            self._transport.sendto(ask(number, spelled))
            async with asyncio.timeout(_PATIENCE_S):
                return await future
        finally:
            del self._waiting[number]

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


class Resolver:
    """Looks names up. What was found, and what was not, is kept as long as it may be."""

    def __init__(self, host_sockets: Sequence[socket.socket]) -> None:
        self._sockets = host_sockets
        self._host: list[_Conversation] = []
        self._kept: OrderedDict[tuple[str, tuple[str, ...]], tuple[float, Addresses]] = OrderedDict()

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        for connected in self._sockets:
            _, conversation = await loop.create_datagram_endpoint(_Conversation, sock=connected)
            self._host.append(conversation)

    async def look_up(self, name: str, servers: tuple[str, ...]) -> Addresses:
        """IPv4 addresses of `name` from `servers`, the host's when there are none. Raises `Unresolved`."""
        key, now = (name, servers), asyncio.get_running_loop().time()
        known = self._kept.get(key)
        if known is None or known[0] <= now:
            found = await self._asked(name, servers)
            ttl_s = max(_LEAST_TTL_S, min(found.ttl_s, _MOST_TTL_S)) if found.addresses else _FAILURE_TTL_S
            known = (now + ttl_s, found)
            self._kept[key] = known
            self._kept.move_to_end(key)
            while len(self._kept) > _MOST_KEPT:
                self._kept.popitem(last=False)
        if not known[1].addresses:
            raise Unresolved(known[1].code)
        left = max(1, int(known[0] - now))
        return Addresses(code=0, addresses=known[1].addresses[:_MOST_ADDRESSES], ttl_s=left)

    async def _asked(self, name: str, servers: tuple[str, ...]) -> Addresses:
        said = Addresses(code=Code.SERVER_FAILURE)
        for _ in range(_ROUNDS):
            for index in range(len(servers) or len(self._host)):
                try:
                    said = await (self._of_policy(name, servers[index]) if servers else self._host[index].ask(name))
                except (TimeoutError, OSError):
                    continue
                if said.addresses or said.code in (Code.NO_ERROR, Code.NO_SUCH_NAME):
                    return said
        return said

    async def _of_policy(self, name: str, server: str) -> Addresses:
        """From a port of its own for each question: the answer of an off-path forger has to find it."""
        loop = asyncio.get_running_loop()
        _, conversation = await loop.create_datagram_endpoint(_Conversation, remote_addr=(server, _PORT))
        try:
            return await conversation.ask(name)
        finally:
            conversation.close()
