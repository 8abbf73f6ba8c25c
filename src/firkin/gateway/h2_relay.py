"""Requests of an intercepted HTTP/2 connection, each judged by itself and led on in a stream of its own. No I/O.

Headers go in only where everything agrees: the connection's name, the authority of
this request, the rule. A request that does not agree is answered here and nothing of
it goes on: clients share connections between names on purpose (RFC 9113 9.1.1), so the
name that a connection was opened for says nothing of the requests in it.
"""

from __future__ import annotations

from h2.errors import ErrorCodes
from h2.events import (
    DataReceived,
    Event,
    InformationalResponseReceived,
    RequestReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)

from firkin.gateway.h2_end import LAST_STREAM, MOST_STREAMS, End
from firkin.gateway.h2_exchange import Exchange, Flow, refusal
from firkin.gateway.h2_fields import lowered, read_answer, read_answer_trailers, read_request, read_trailers
from firkin.gateway.h2_frames import GoneAway
from firkin.gateway.heads import Malformed
from firkin.gateway.judgement import Refusal, Refused
from firkin.gateway.tenants import Tenant
from firkin.law.network import HeaderRule

_GUEST_WINDOW = 1 << 18  # a guest is next door: its window need not cover a distance
_SERVER_WINDOW = 1 << 19
_FILLED = 1 << 16


class Relay:
    """Both ends of one connection to `name`, which the guest thought to be at `address`.

    With `refused` there is no server, and that is the answer to every request that was good.
    """

    def __init__(self, tenant: Tenant, *, name: str, port: int, address: str, refused: Refusal | None = None) -> None:
        self.guest = End(client=False, window=_GUEST_WINDOW)
        self.server = End(client=True, window=_SERVER_WINDOW)
        self._tenant = tenant
        self._name = name
        self._port = port
        self._address = address
        self._refused = refused
        self._exchanges: dict[int, Exchange] = {}  # by the guest's stream
        self._opened: dict[int, Exchange] = {}  # by the server's
        self._queue: dict[int, Exchange] = {}  # in order; those that the server has no room for yet
        self._leaving = False  # no further request is taken
        self._bade_farewell = False
        self._guest_left = False

    @property
    def idle(self) -> bool:
        """Whether no request is under way."""
        return not self._exchanges

    @property
    def over(self) -> bool:
        """Whether no request is under way and none can come."""
        return not self._exchanges and (self._leaving or self._guest_left)

    @property
    def held(self) -> int:
        """How many bytes of bodies wait here."""
        return sum(len(exchange.up.waiting) + len(exchange.down.waiting) for exchange in self._exchanges.values())

    def close(self) -> None:
        """Give back what it holds of the tenant's."""
        for exchange in list(self._exchanges.values()):
            self._forget(exchange)

    def retire(self, code: int = ErrorCodes.NO_ERROR) -> None:
        """Ask the guest to take its next requests elsewhere."""
        self._leaving = True
        if not self._bade_farewell:
            self._bade_farewell = True
            self.guest.go_away(self.guest.last_stream, code)

    def guest_said(self, data: bytes, now: float) -> None:
        """Raises `h2.exceptions.ProtocolError` and `TooMuch`: the guest is to get what waits, and the end."""
        for event in self.guest.receive(data, now):
            if isinstance(event, RequestReceived):
                self._requested(event)
            elif isinstance(event, GoneAway):
                self._guest_left = True
            else:
                exchange = self._exchanges.get(getattr(event, "stream_id", None) or 0)
                if exchange is not None:
                    self._request_goes_on(exchange, event)
            self._open_queued()

    def server_said(self, data: bytes, now: float) -> None:
        """Raises `h2.exceptions.ProtocolError` and `TooMuch`: the server is lost."""
        for event in self.server.receive(data, now):
            if isinstance(event, GoneAway):
                self._server_leaves(event)
            else:
                exchange = self._opened.get(getattr(event, "stream_id", None) or 0)
                if exchange is not None:
                    self._answer_goes_on(exchange, event)
            self._open_queued()

    def server_lost(self, why: Refusal) -> None:
        """It hung up, or broke. What it has said whole still goes to the guest.

        The guest's farewell comes last: a client made with `h2` hears nothing after it.
        """
        self._leaving = True
        for exchange in list(self._exchanges.values()):
            if exchange.down.ended:
                self._stop_request(exchange)
            elif exchange.answered:
                self._abandon(exchange, ErrorCodes.INTERNAL_ERROR)
            else:
                self._refuse(exchange, why)

    def fill(self, sink: End) -> bool:
        """Hand what is held of bodies to `sink`, a frame of each in turn; whether there was anything."""
        moved = False
        while sink.waiting < _FILLED and self._round(sink):
            moved = True
        return moved

    def _round(self, sink: End) -> bool:
        upwards, moved = sink is self.server, False
        for exchange in list(self._opened.values() if upwards else self._exchanges.values()):
            flow = exchange.up if upwards else exchange.down
            if flow.has_more:
                moved |= self._move(exchange, flow, sink)
        return moved

    def _move(self, exchange: Exchange, flow: Flow, sink: End) -> bool:
        """One frame. False when the window is shut."""
        upwards = sink is self.server
        stream, source = (exchange.server, self.guest) if upwards else (exchange.guest, self.server)
        if not flow.waiting:
            flow.done = True
            if flow.trailers:
                sink.send_head(stream, flow.trailers, ends=True)
            else:
                sink.send_data(stream, b"", ends=True)
        else:
            room = sink.room(stream)
            if not room:
                return False
            piece = flow.cut(room)
            sink.send_data(stream, piece, ends=flow.done)
            self._tenant.held -= len(piece)
            self._took(exchange, flow, source, len(piece))
        self._settle(exchange)
        return True

    def _took(self, exchange: Exchange, flow: Flow, source: End, count: int) -> None:
        """So much went on, or counts as if it had: whoever sent it may send more."""
        flow.taken += count
        stream = exchange.guest if source is self.guest else exchange.server
        if not flow.ended and stream and source.acknowledge(stream, flow.taken):
            flow.taken = 0

    def _hold(self, exchange: Exchange, flow: Flow, event: DataReceived) -> None:
        data = event.data or b""
        flow.waiting += data
        self._tenant.held += len(data)
        if padding := (event.flow_controlled_length or 0) - len(data):
            self._took(exchange, flow, self.guest if flow is exchange.up else self.server, padding)

    def _requested(self, event: RequestReceived) -> None:
        ended = event.stream_ended is not None
        exchange = Exchange(event.stream_id, up=Flow(ended=ended))
        exchange.bodiless = (b":method", b"HEAD") in event.headers
        self._exchanges[exchange.guest] = exchange
        if self._leaving or len(self._exchanges) > MOST_STREAMS:
            self._abandon(exchange, ErrorCodes.REFUSED_STREAM)
            return
        try:
            asked = read_request(event.headers, name=self._name, port=self._port, ended=ended)
            rule = self._rule()
            if self._refused is not None:
                self._tenant.filled(rule)  # a request's own fault comes first, as in HTTP/1.1
                raise Refused(self._refused)
        except Refused as refused:
            self._refuse(exchange, refused.why)
            return
        exchange.asked, exchange.length = asked, asked.length
        self._tenant.held += asked.weight
        self._queue[exchange.guest] = exchange

    def _rule(self) -> HeaderRule:
        rule = self._tenant.judge.rule(self._name)
        if rule is None:  # the policy changed under this connection
            raise Refused(Refusal.NAME_NOT_ALLOWED)
        return rule

    def _open_queued(self) -> None:
        """In order, as far as the server has room. Secrets are those of the moment when a request goes out."""
        while self._queue and (stream := self.server.next_stream()) is not None:
            exchange = next(iter(self._queue.values()))
            assert exchange.asked is not None
            try:
                head = exchange.asked.written(self._tenant.filled(self._rule()))
            except Refused as refused:
                self._refuse(exchange, refused.why)
                continue
            self._unqueue(exchange)
            exchange.server = stream
            self._opened[stream] = exchange
            exchange.up.done = exchange.up.ended and not exchange.up.waiting and not exchange.up.trailers
            self.server.send_head(stream, head, ends=exchange.up.done)

    def _request_goes_on(self, exchange: Exchange, event: Event) -> None:
        match event:
            case DataReceived() if not exchange.up.done:
                exchange.received += len(event.data or b"")
                self._hold(exchange, exchange.up, event)
            case TrailersReceived() if not exchange.up.done:
                self._end_with_trailers(exchange, event)
            case StreamEnded():
                exchange.up.ended = True
                self._settle(exchange)
            case StreamReset():
                if exchange.server:
                    self.server.reset(exchange.server, event.error_code or 0)
                self._forget(exchange)

    def _end_with_trailers(self, exchange: Exchange, event: TrailersReceived) -> None:
        try:
            if exchange.length not in (None, exchange.received):  # h2 4.4 forgets the length when trailers come
                raise Malformed
            exchange.up.trailers = read_trailers(event.headers, without=lowered(self._rule().headers))
        except (Malformed, Refused):
            self._deny(Refusal.MALFORMED)
            self._abandon(exchange, ErrorCodes.PROTOCOL_ERROR)

    def _answer_goes_on(self, exchange: Exchange, event: Event) -> None:
        try:
            match event:
                case InformationalResponseReceived():
                    self.guest.send_head(exchange.guest, read_answer(event.headers), ends=False)
                case ResponseReceived():
                    head = read_answer(event.headers)
                    exchange.answered = True
                    exchange.down.ended = exchange.down.done = event.stream_ended is not None
                    self.guest.send_head(exchange.guest, head, ends=exchange.down.done)
                    self._settle(exchange)
                case DataReceived():
                    self._hold(exchange, exchange.down, event)
                case TrailersReceived():
                    exchange.down.trailers = read_answer_trailers(event.headers)
                case StreamEnded():
                    exchange.down.ended = True
                case StreamReset() if exchange.down.ended:  # it wants no more of the request (RFC 9113 8.1)
                    self._stop_request(exchange)
                case StreamReset():
                    self._abandon(exchange, event.error_code or 0)
        except Malformed:
            self._abandon(exchange, ErrorCodes.PROTOCOL_ERROR)

    def _server_leaves(self, gone: GoneAway) -> None:
        if gone.last == LAST_STREAM:  # only a warning: the true last one is told later (RFC 9113 6.8)
            if not self._leaving:
                self.guest.go_away(LAST_STREAM, gone.code)
            return
        self.retire(gone.code)
        for exchange in list(self._exchanges.values()):
            if exchange.guest in self._queue or exchange.server > gone.last:
                self._abandon(exchange, ErrorCodes.REFUSED_STREAM)

    def _refuse(self, exchange: Exchange, why: Refusal) -> None:
        """Answer it here."""
        self._deny(why)
        self._drop(exchange)
        exchange.server, exchange.answered = 0, True
        head, text = refusal(why)
        exchange.down.ended, exchange.down.done = True, exchange.bodiless
        self.guest.send_head(exchange.guest, head, ends=exchange.bodiless)
        if not exchange.bodiless:
            exchange.down.waiting += text
            self._tenant.held += len(text)
        self._stop_request(exchange)

    def _deny(self, why: Refusal) -> None:
        self._tenant.deny(why, port=self._port, name=self._name, address=self._address)

    def _stop_request(self, exchange: Exchange) -> None:
        """Nobody wants the rest of it."""
        self._tenant.held -= exchange.up.drop()
        exchange.up.done = True
        self._settle(exchange)

    def _settle(self, exchange: Exchange) -> None:
        """Forget it if it is over."""
        if exchange.down.done and exchange.up.done:
            if not exchange.up.ended:
                self.guest.reset(exchange.guest, ErrorCodes.NO_ERROR)
            self._forget(exchange)

    def _abandon(self, exchange: Exchange, code: int) -> None:
        """End it at both ends."""
        self.guest.reset(exchange.guest, code)
        if exchange.server:
            self.server.reset(exchange.server, ErrorCodes.CANCEL)
        self._forget(exchange)

    def _forget(self, exchange: Exchange) -> None:
        self._drop(exchange)
        self._exchanges.pop(exchange.guest, None)

    def _drop(self, exchange: Exchange) -> None:
        self._tenant.held -= exchange.up.drop() + exchange.down.drop()
        self._opened.pop(exchange.server, None)
        self._unqueue(exchange)

    def _unqueue(self, exchange: Exchange) -> None:
        if self._queue.pop(exchange.guest, None) is not None and exchange.asked is not None:
            self._tenant.held -= exchange.asked.weight
            exchange.asked = None
