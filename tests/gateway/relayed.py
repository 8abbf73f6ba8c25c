"""A guest's and a server's protocol machine with a `Relay` between them, in memory: bytes move when a test says so."""

from __future__ import annotations

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, Event
from h2.settings import SettingCodes, Settings
from hyperframe.frame import Frame

from firkin.gateway.denials import HTTP, Denial
from firkin.gateway.h2_relay import Relay
from firkin.gateway.judgement import Refusal
from firkin.gateway.orders import SandboxOrder
from firkin.gateway.tenants import Tenant
from firkin.law.network import HeaderRule, NetworkPolicy

HOST, ADDRESS = "api.test", "9.9.9.9"
RULE = HeaderRule(domain=HOST, headers={"Authorization": "Bearer ${e2b.secrets.key}", "X-Team": "a"})
Fields = list[tuple[str, str]]


def tenant(rule: HeaderRule = RULE, **secrets: str) -> Tenant:
    policy = NetworkPolicy(internet=True, rules=(rule,))
    return Tenant(SandboxOrder(sandbox_id="s", address="198.18.0.2", policy=policy, secrets=secrets or {"key": "v1"}))


def denial(why: Refusal, protocol: str = HTTP) -> Denial:
    """As it is noted of a request on a connection of these tests."""
    return Denial(why=why, protocol=protocol, port=443, name=HOST, address=ADDRESS)


def asking(path: str = "/", method: str = "GET", authority: str = HOST, **more: str) -> Fields:
    head = [(":method", method), (":scheme", "https"), (":authority", authority), (":path", path)]
    return head + [(name.replace("_", "-"), value) for name, value in more.items()]


class Wired:
    """`guest` asks, `server` answers; what each hears is kept, of bodies only how long they were."""

    def __init__(
        self,
        told: Tenant | None = None,
        *,
        refused: Refusal | None = None,
        strict: bool = True,
        before_settings: bool = False,
    ) -> None:
        self.tenant = told or tenant()
        self.relay = Relay(self.tenant, name=HOST, port=443, address=ADDRESS, refused=refused)
        loose = not strict
        self.guest = H2Connection(
            H2Configuration(
                client_side=True,
                header_encoding="utf-8",
                validate_outbound_headers=not loose,
                normalize_outbound_headers=not loose,
            )
        )
        self.server = H2Connection(
            H2Configuration(
                client_side=False,
                header_encoding="utf-8",
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
            )
        )
        self.guest_heard: list[Event] = []
        self.server_heard: list[Event] = []
        self.now = 0.0
        self.acknowledging = True
        self.guest.initiate_connection()
        self.server.local_settings = Settings(client=False, initial_values={SettingCodes.MAX_CONCURRENT_STREAMS: 1000})
        self.server.initiate_connection()
        if not before_settings:
            self.flow()

    def denied(self) -> list[tuple[Denial, int]]:
        """What was noted since it was last asked."""
        return self.tenant.denials.taken()

    def flow(self) -> None:
        """Until nothing moves any more."""
        moved = True
        while moved:
            moved = self._up() | self._down()

    def raw(self, data: bytes) -> None:
        """Bytes of the guest's own making."""
        self.relay.guest_said(data, self.now)
        self.flow()

    def frame(self, frame: Frame) -> None:
        self.raw(frame.serialize())

    def ask(self, fields: Fields, body: bytes | None = None, trailers: Fields | None = None) -> int:
        """A whole request that fits into the windows, and what becomes of it."""
        stream = self.guest.get_next_available_stream_id()
        self.guest.send_headers(stream, fields, end_stream=body is None and trailers is None)
        if body is not None:
            self.guest.send_data(stream, body, end_stream=trailers is None)
        if trailers is not None:
            self.guest.send_headers(stream, trailers, end_stream=True)
        self.flow()
        return stream

    def of_guest(self, kind: type[Event], stream: int) -> list[Event]:
        return [event for event in self.guest_heard if type(event) is kind and getattr(event, "stream_id", 0) == stream]

    def of_server(self, kind: type[Event]) -> list[Event]:
        return [event for event in self.server_heard if type(event) is kind]

    def _up(self) -> bool:
        data = self.guest.data_to_send()
        if data:
            self.relay.guest_said(data, self.now)
        filled = self.relay.fill(self.relay.server)
        out = self.relay.server.take()
        if out:
            self.server_heard += self._noted(self.server, self.server.receive_data(out))
        return bool(data) or filled or bool(out)

    def _down(self) -> bool:
        data = self.server.data_to_send()
        if data:
            self.relay.server_said(data, self.now)
        filled = self.relay.fill(self.relay.guest)
        out = self.relay.guest.take()
        if out:
            self.guest_heard += self._noted(self.guest, self.guest.receive_data(out))
        return bool(data) or filled or bool(out)

    def _noted(self, machine: H2Connection, events: list[Event]) -> list[Event]:
        if self.acknowledging:
            for event in events:
                if isinstance(event, DataReceived) and event.flow_controlled_length:
                    machine.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        return events
