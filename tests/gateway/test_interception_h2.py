"""Connections in HTTP/2 over real sockets: how they begin, how they end, and what they hold meanwhile."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import ConnectionTerminated, Event, RequestReceived, ResponseReceived, SettingsAcknowledged, StreamEnded
from hyperframe.frame import DataFrame, PingFrame

from firkin.gateway import interception_h2
from firkin.gateway.authorities import Issuer, new_authority
from firkin.gateway.denials import TCP
from firkin.gateway.dialling import Stream
from firkin.gateway.interception_h2 import InterceptionH2
from firkin.gateway.judgement import Refusal, Refused
from firkin.gateway.orders import SandboxOrder
from firkin.gateway.tenants import Tenant
from firkin.gateway.upstreams import Upstreams, agreed
from firkin.law.network import NetworkPolicy
from firkin.lifetimes import children
from tests.gateway.relayed import ADDRESS, HOST, RULE, asking, denial

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Guest:
    """A client's end of an intercepted connection."""

    def __init__(self, stream: Stream, tenant: Tenant, ended: asyncio.Task[None]) -> None:
        self.stream = stream
        self.tenant = tenant
        self.ended = ended
        self.machine = H2Connection(H2Configuration(header_encoding="utf-8"))
        self.machine.initiate_connection()

    def ask(self, path: str) -> int:
        stream = self.machine.get_next_available_stream_id()
        self.machine.send_headers(stream, asking(path), end_stream=True)
        self.stream.writer.write(self.machine.data_to_send())
        return stream

    async def hear(self, kind: type[Event]) -> Event:
        """The next event of that kind."""
        while True:
            data = await asyncio.wait_for(self.stream.reader.read(65536), 10)
            assert data, "it ended"
            for event in self.machine.receive_data(data):
                if type(event) is kind:
                    return event


@pytest.fixture
async def meet(tmp_path: Path) -> AsyncIterator[Callable[..., Awaitable[Guest]]]:
    authority = new_authority([HOST])
    (tmp_path / "leaf").write_text(Issuer(authority.certificate, authority.key).leaf(HOST))
    shown = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    shown.load_cert_chain(tmp_path / "leaf")
    shown.set_alpn_protocols(["h2"])
    trusting = ssl.create_default_context(cadata=authority.certificate)
    trusting.set_alpn_protocols(["h2"])
    opened: list[asyncio.Server] = []
    writers: list[asyncio.StreamWriter] = []
    async with children() as tasks:

        async def make(handler: Handler | Refusal) -> Guest:
            policy = NetworkPolicy(internet=True, rules=(RULE,))
            tenant = Tenant(SandboxOrder(sandbox_id="s", address="1.2.3.4", policy=policy, secrets={"key": "v1"}))
            ours: asyncio.Future[Stream] = asyncio.get_running_loop().create_future()
            door = await asyncio.start_server(lambda *ends: ours.set_result(Stream(*ends)), "127.0.0.1", 0, ssl=shown)
            opened.append(door)
            port = door.sockets[0].getsockname()[1]
            guest = Stream(
                *await asyncio.open_connection("127.0.0.1", port, ssl=trusting, server_hostname=HOST, limit=1 << 16)
            )
            writers.append(guest.writer)

            async def dial() -> Stream:
                if isinstance(handler, Refusal):
                    raise Refused(handler)
                server = await asyncio.start_server(handler, "127.0.0.1", 0)
                opened.append(server)
                return Stream(*await asyncio.open_connection(*server.sockets[0].getsockname()))

            dialled = tasks.start(dial(), name="dial")
            dialled.add_done_callback(lambda task: task.exception())
            interception = InterceptionH2(tenant, await ours, name=HOST, port=443, address=ADDRESS)
            ended = tasks.start(interception.run(dialled), name="interception")
            ended.add_done_callback(lambda task: task.cancelled() or task.exception())
            return Guest(guest, tenant, ended)

        yield make
        for writer in writers:
            writer.transport.abort()
        for server in opened:
            server.close()
        await asyncio.sleep(0.02)  # closed in turns of the loop
        tasks._failure = None


async def polite(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers 200 to everything, and hangs up when asked for /bye; /never gets no answer, /cut half of one."""
    machine = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
    machine.initiate_connection()
    try:
        while True:
            writer.write(machine.data_to_send())
            data = await reader.read(65536)
            if not data:
                break
            for event in machine.receive_data(data):
                if isinstance(event, RequestReceived):
                    path = dict(event.headers)[":path"]
                    if path == "/cut":
                        break
                    if path != "/never":
                        machine.send_headers(event.stream_id, [(":status", "200")], end_stream=True)
                        writer.write(machine.data_to_send())
                    if path == "/bye":
                        return
            else:
                continue
            break
    except OSError:
        pass
    finally:
        writer.close()


async def test_a_server_that_hangs_up_ends_the_connection_in_order(meet: Callable[..., Awaitable[Guest]]) -> None:
    guest = await meet(polite)
    guest.ask("/bye")
    assert dict((await guest.hear(ResponseReceived)).headers)[":status"] == "200"  # type: ignore[attr-defined]
    gone = await guest.hear(ConnectionTerminated)
    assert gone.error_code == ErrorCodes.NO_ERROR  # type: ignore[attr-defined]
    await guest.ended
    assert not guest.tenant.denials.taken()


async def test_a_server_that_is_lost_in_a_request_is_502(meet: Callable[..., Awaitable[Guest]]) -> None:
    guest = await meet(polite)
    guest.ask("/cut")
    assert dict((await guest.hear(ResponseReceived)).headers)[":status"] == "502"  # type: ignore[attr-defined]
    await guest.hear(ConnectionTerminated)
    assert guest.tenant.denials.taken() == [(denial(Refusal.UNREACHABLE, TCP), 1)]
    assert guest.tenant.held == 0


async def test_without_a_server_the_reason_is_told_in_http_2(meet: Callable[..., Awaitable[Guest]]) -> None:
    guest = await meet(Refusal.UNTRUSTED)
    guest.ask("/")
    assert dict((await guest.hear(ResponseReceived)).headers)[":status"] == "502"  # type: ignore[attr-defined]


async def test_a_guest_that_does_not_speak_it_is_left(meet: Callable[..., Awaitable[Guest]]) -> None:
    guest = await meet(polite)
    guest.stream.writer.write(b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n")
    with pytest.raises(Refused, match=r"malformed"):
        await guest.ended
    assert b"HTTP/1" not in await guest.stream.reader.read()


async def test_a_guest_that_breaks_the_protocol_hears_so(meet: Callable[..., Awaitable[Guest]]) -> None:
    guest = await meet(polite)
    guest.stream.writer.write(guest.machine.data_to_send() + DataFrame(5, b"x").serialize())
    gone = await guest.hear(ConnectionTerminated)
    assert gone.error_code == ErrorCodes.PROTOCOL_ERROR  # type: ignore[attr-defined]
    with pytest.raises(Refused, match=r"malformed"):
        await guest.ended


@pytest.mark.thorough
async def test_a_flood_hears_that_it_is_one(meet: Callable[..., Awaitable[Guest]]) -> None:
    guest = await meet(polite)
    guest.stream.writer.write(guest.machine.data_to_send() + PingFrame(0, bytes(8)).serialize() * 20_000)
    gone = await guest.hear(ConnectionTerminated)
    assert gone.error_code == ErrorCodes.ENHANCE_YOUR_CALM  # type: ignore[attr-defined]
    with pytest.raises(Refused):
        await guest.ended


@pytest.mark.thorough
async def test_pings_that_nobody_reads_pile_up_nowhere(
    meet: Callable[..., Awaitable[Guest]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interception_h2, "_MOST_WAITING", 1 << 12)
    guest = await meet(polite)
    guest.stream.writer.write(guest.machine.data_to_send() + PingFrame(0, bytes(8)).serialize() * 4000)
    guest.ask("/")
    await guest.hear(ResponseReceived)
    assert not guest.tenant.denials.taken()


@pytest.mark.thorough
async def test_an_idle_connection_is_retired_whatever_it_pings(
    meet: Callable[..., Awaitable[Guest]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interception_h2, "BETWEEN_REQUESTS_S", 0.2)
    guest = await meet(polite)
    guest.ask("/")
    await guest.hear(StreamEnded)
    guest.machine.ping(bytes(8))
    guest.stream.writer.write(guest.machine.data_to_send())
    gone = await guest.hear(ConnectionTerminated)
    assert gone.error_code == ErrorCodes.NO_ERROR  # type: ignore[attr-defined]
    await guest.ended


@pytest.mark.thorough
async def test_nothing_that_moves_for_too_long_is_cut(
    meet: Callable[..., Awaitable[Guest]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interception_h2, "BETWEEN_REQUESTS_S", 0.1)
    monkeypatch.setattr(interception_h2, "IDLE_S", 0.2)
    guest = await meet(polite)
    guest.ask("/never")
    await asyncio.wait_for(guest.ended, 5)


async def test_a_cut_ends_both_ends(meet: Callable[..., Awaitable[Guest]]) -> None:
    guest = await meet(polite)
    guest.ask("/never")
    await guest.hear(SettingsAcknowledged)
    guest.ended.cancel()
    with pytest.raises((OSError, AssertionError)):
        await guest.hear(ResponseReceived)


async def test_too_much_held_for_one_sandbox_ends_the_connection(
    meet: Callable[..., Awaitable[Guest]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interception_h2, "MOST_HELD", 20_000)
    monkeypatch.setattr(interception_h2, "_FAIR_SHARE", 1000)

    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        machine = H2Connection(H2Configuration(client_side=False))
        machine.local_settings[4] = 0  # it lets nothing of a body come
        machine.local_settings.acknowledge()
        machine.initiate_connection()
        writer.write(machine.data_to_send())
        await reader.read()
        writer.close()

    guest = await meet(deaf)
    stream = guest.machine.get_next_available_stream_id()
    guest.machine.send_headers(stream, asking(method="POST"))
    for _ in range(3):
        guest.machine.send_data(stream, bytes(16000))
    guest.stream.writer.write(guest.machine.data_to_send())
    gone = await guest.hear(ConnectionTerminated)
    assert gone.error_code == ErrorCodes.ENHANCE_YOUR_CALM  # type: ignore[attr-defined]
    with pytest.raises(Refused):
        await guest.ended
    assert guest.tenant.held == 0


@pytest.mark.thorough
async def test_a_server_is_offered_what_the_guest_offered_and_no_more() -> None:
    first = ssl.create_default_context()
    upstreams = Upstreams(first)
    assert upstreams.offering(()) is first
    assert upstreams.offering((b"acme", b"http/1.1")) is first
    both = upstreams.offering((b"h2", b"http/1.1"))
    assert both is upstreams.offering((b"h2", b"x", b"h2", b"http/1.1"))
    assert both is not upstreams.offering((b"h2",))
    assert both.get_ca_certs() == first.get_ca_certs()
    assert both.verify_mode is ssl.CERT_REQUIRED
    assert both.check_hostname


async def test_where_there_is_no_server_the_reason_is_told_in_what_the_guest_speaks() -> None:
    async def fail() -> Stream:
        raise Refused(Refusal.UNREACHABLE)

    for offered, protocol in (((b"h2",), "h2"), ((b"h2", b"http/1.1"), "http/1.1"), ((), "http/1.1")):
        with suppress(Refused):
            async with children() as tasks:
                assert await agreed(tasks.start(fail(), name="dial"), offered) == protocol
