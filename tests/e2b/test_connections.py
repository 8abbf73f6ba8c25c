"""Who keeps a connection when there are too many of them."""

from __future__ import annotations

import asyncio

import pytest

from firkin.e2b.connections import Connections, Crowded
from firkin.e2b.exchange import Exchange, Message, Receive, Send
from firkin.e2b.server import serving


class Visitor:
    def __init__(self) -> None:
        self.evicted = False

    def evict(self) -> None:
        self.evicted = True


def _visitors(connections: Connections, *addresses: str) -> list[Visitor]:
    visitors = [Visitor() for _ in addresses]
    for visitor, address in zip(visitors, addresses, strict=True):
        connections.arrive(visitor, address)
    return visitors


def test_one_too_many_takes_the_place_of_who_has_been_without_a_request_for_the_longest() -> None:
    connections = Connections(3)
    first, second, third = _visitors(connections, "127.0.0.1", "127.0.0.1", "127.0.0.1")
    connections.works(first)
    connections.rests(first)
    _visitors(connections, "127.0.0.1")
    assert (first.evicted, second.evicted, third.evicted, len(connections)) == (False, True, False, 3)


def test_who_has_a_request_keeps_its_connection_and_one_too_many_is_refused() -> None:
    connections = Connections(2)
    at_work = _visitors(connections, "127.0.0.1", "127.0.0.1")
    for visitor in at_work:
        connections.works(visitor)
    late = Visitor()
    with pytest.raises(Crowded, match="2 connections to this server are at work"):
        connections.arrive(late, "192.0.2.1")
    assert not any(visitor.evicted for visitor in at_work)
    connections.leave(at_work[0])
    connections.leave(late)
    connections.arrive(Visitor(), "192.0.2.1")


def test_one_address_does_not_get_everything_but_this_machine_may() -> None:
    connections = Connections(4)
    strangers = _visitors(connections, *["192.0.2.1"] * 4)
    assert [visitor.evicted for visitor in strangers] == [True, False, False, False]
    others = _visitors(Connections(4), "127.0.0.1", "::1", "::ffff:127.0.0.1", "127.0.0.2")
    assert not any(visitor.evicted for visitor in others)


def test_a_network_of_ipv6_counts_as_one_address() -> None:
    connections = Connections(4)
    strangers = _visitors(connections, "2001:db8::1", "2001:db8::2", "2001:db8::3:4", "2001:db8:0:0:5::")
    assert [visitor.evicted for visitor in strangers] == [True, False, False, False]
    assert len(connections) == 3


def test_the_only_connection_of_an_address_may_be_the_one_that_goes() -> None:
    connections = Connections(1)
    first, second = _visitors(connections, "192.0.2.1", "192.0.2.1")
    connections.leave(first)
    connections.leave(second)
    connections.leave(second)
    assert (first.evicted, second.evicted, len(connections)) == (True, False, 0)


def test_refusals_are_told_only_while_there_are_few_of_them() -> None:
    connections = Connections(20)
    for visitor in _visitors(connections, *["127.0.0.1"] * 20):
        connections.works(visitor)
    told = []
    for _ in range(3):
        with pytest.raises(Crowded) as refusal:
            connections.arrive(Visitor(), "127.0.0.1")
        told.append(refusal.value.politely)
    assert told == [True, False, False]


async def hello(scope: Message, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    exchange = Exchange(scope, receive, send)
    if scope["path"] == "/endless":
        await exchange.start(200, [])
        await exchange.write(b"begun")
        await exchange.disconnected()
    else:
        await exchange.answer(200, b"hello")


Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _asked(port: int, path: str, end: bytes) -> Ends:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    async with asyncio.timeout(5):
        await reader.readuntil(end)
    return reader, writer


@pytest.mark.thorough
async def test_connections_that_are_kept_for_nothing_do_not_keep_others_out() -> None:
    async with serving(hello, "127.0.0.1", 0, grace_s=0.1, most_connections=20) as port:
        kept = [await _asked(port, "/", b"hello") for _ in range(30)]
        async with asyncio.timeout(5):
            for reader, _ in kept[:10]:
                assert await reader.read() == b""
        reader, writer = kept[-1]
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        async with asyncio.timeout(5):
            assert b"hello" in await reader.readuntil(b"hello")
        for _, writer in kept:
            writer.close()


@pytest.mark.thorough
async def test_where_all_are_at_work_one_more_is_told_so() -> None:
    async with serving(hello, "127.0.0.1", 0, grace_s=0.1, most_connections=20) as port:
        at_work = [await _asked(port, "/endless", b"begun") for _ in range(20)]
        _, refused = late = await _asked(port, "/", b"which is the limit; close some")
        at_work[0][1].transport.abort()
        refused.close()
        async with asyncio.timeout(5):
            await late[0].read()
            while True:
                try:
                    at_work.append(await _asked(port, "/", b"hello"))
                    break
                except (asyncio.IncompleteReadError, ConnectionError):
                    await asyncio.sleep(0.01)
        for _, writer in at_work:
            writer.close()
