"""Requests and answers through a relay: whose headers, which streams, how much memory."""

from __future__ import annotations

import pytest
from h2.errors import ErrorCodes
from h2.events import (
    DataReceived,
    InformationalResponseReceived,
    PingAckReceived,
    RequestReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes
from hyperframe.frame import DataFrame, GoAwayFrame, HeadersFrame

from firkin.gateway.denials import TCP
from firkin.gateway.h2_frames import TooMuch
from firkin.gateway.judgement import Refusal
from firkin.law.network import HeaderRule
from tests.gateway.relayed import HOST, Fields, Wired, asking, denial, tenant

OK = [(":status", "200")]


def heads(wired: Wired) -> list[Fields]:
    return [list(event.headers) for event in wired.of_server(RequestReceived)]  # type: ignore[attr-defined]


def status(wired: Wired, stream: int) -> str:
    [event] = wired.of_guest(ResponseReceived, stream)
    return dict(event.headers)[":status"]  # type: ignore[attr-defined]


def body(wired: Wired, stream: int) -> bytes:
    return b"".join(event.data for event in wired.of_guest(DataReceived, stream))  # type: ignore[attr-defined]


def test_headers_go_in_and_the_guest_s_own_of_that_name_do_not() -> None:
    wired = Wired(strict=False)
    fields = [*asking("/a", x_b="c"), ("authorization", "mine"), ("authorization", "mine too"), ("x-team", "mine")]
    wired.ask(fields)
    [head] = heads(wired)
    assert [value for name, value in head if name == "authorization"] == ["Bearer v1"]
    assert [value for name, value in head if name == "x-team"] == ["a"]
    assert ("x-b", "c") in head
    assert (":path", "/a") in head


def test_upper_case_is_no_way_around() -> None:
    wired = Wired(strict=False)
    with pytest.raises(ProtocolError):
        wired.ask([*asking(), ("Authorization", "mine")])
    assert not heads(wired)


def test_each_request_s_authority_must_be_the_connection_s() -> None:
    wired = Wired(strict=False)
    for wrong in ("other.test", "api.test:8443", "user@api.test", "api.test.other.test", "", "10.0.0.1"):
        stream = wired.ask(asking(authority=wrong))
        assert status(wired, stream) == "421", wrong
        assert Refusal.OTHER_HOST.value.encode() in body(wired, stream)
    assert not heads(wired)
    assert wired.denied() == [(denial(Refusal.OTHER_HOST), 6)]
    good = [wired.ask(asking(authority=name)) for name in ("api.test", "API.test:443", "api.test.")]
    assert [dict(head)[":authority"] for head in heads(wired)] == ["api.test", "API.test:443", "api.test."]
    assert not any(wired.of_guest(StreamReset, stream) for stream in good)


def test_a_host_beside_the_authority_must_be_the_same_and_goes_no_further() -> None:
    wired = Wired(strict=False)
    wired.ask([*asking(), ("host", HOST)])
    assert "host" not in dict(heads(wired)[0])
    without = [pair for pair in asking() if pair[0] != ":authority"]
    wired.ask([*without, ("host", HOST)])
    assert dict(heads(wired)[1])[":authority"] == HOST
    refused = wired.ask([*without, ("host", "other.test")])
    assert status(wired, refused) == "421"
    with pytest.raises(ProtocolError):
        wired.ask([*asking(), ("host", "other.test")])
    assert len(heads(wired)) == 2


@pytest.mark.parametrize(
    "fields",
    [
        [*asking(), ("connection", "x-team")],
        [*asking(), ("transfer-encoding", "chunked")],
        [*asking(), ("upgrade", "h2c")],
        [*asking(), ("keep-alive", "1")],
        [*asking(), ("proxy-connection", "close")],
        [*asking(), ("te", "gzip")],
        [*asking(), ("x-a", "b\r\nauthorization: mine")],
        [*asking(), ("x-a\r\nhost: other.test", "b")],
        [*asking(), ("x a", "b")],
        [*asking(), ("x-a:", "b")],
        [*asking(), ("", "b")],
        [*asking(), ("x-a", " b")],
        [*asking(), ("x-a", "b\0")],
        [*asking(), (":path", "/late")],
        [*asking(), (":authority", "other.test")],
        [(":authority", HOST), *asking(authority="other.test")],
        [*asking(), (":status", "200")],
        [*asking(), (":protocol", "websocket")],
        [pair for pair in asking() if pair[0] != ":path"],
        [pair for pair in asking() if pair[0] != ":scheme"],
        [pair for pair in asking() if pair[0] != ":method"],
        [pair for pair in asking() if pair[0] != ":authority"],
        [*asking(), ("host", HOST), ("host", HOST)],
        [*asking(), ("content-length", "1"), ("content-length", "2")],
        [*asking(), ("content-length", "+5")],
    ],
)
def test_what_the_protocol_forbids_ends_the_connection(fields: Fields) -> None:
    wired = Wired(strict=False)
    with pytest.raises(ProtocolError):
        wired.ask(fields)
    assert not heads(wired)
    assert b"v1" not in wired.relay.guest.take()


@pytest.mark.thorough
@pytest.mark.parametrize(
    "fields",
    [
        asking("/a b"),
        asking("/a\tb"),
        asking("other.test/"),
        asking("https://other.test/"),
        asking("*"),
        asking("/" + "a" * 40000),
        asking(method="GET /other"),
        [(":method", "CONNECT"), (":authority", HOST)],
        [*asking(method="CONNECT"), (":protocol", "websocket")],
        [pair if pair[0] != ":scheme" else (":scheme", "http") for pair in asking()],
        [*asking(), ("x-a", "b\x01")],
        [*asking(), ("x(a)", "b")],
        [*asking(), ("content-length", "5")],  # and no body follows
        [*asking(), ("content-length", "0"), ("content-length", "0")],
        [*asking(), *[("x-a", "b")] * 250],
    ],
)
def test_what_another_reader_could_understand_differently_is_refused(fields: Fields) -> None:
    wired = Wired(strict=False)
    stream = wired.ask(fields)
    assert status(wired, stream) == "400"
    assert Refusal.MALFORMED.value.encode() in body(wired, stream)
    assert not heads(wired)
    assert wired.of_guest(StreamEnded, stream)
    assert wired.ask(asking("/next"))
    assert dict(heads(wired)[0])[":path"] == "/next", "and others go on"


def test_a_secret_is_taken_as_it_is_at_that_moment() -> None:
    wired = Wired()
    wired.ask(asking())
    wired.tenant.order = tenant(key="v2").order
    wired.ask(asking())
    wired.tenant.order = tenant(other="x").order
    refused = wired.ask(asking(method="POST"), b"body")
    assert [dict(head)["authorization"] for head in heads(wired)] == ["Bearer v1", "Bearer v2"]
    assert status(wired, refused) == "403"
    assert Refusal.SECRET_MISSING.value.encode() in body(wired, refused)
    assert wired.denied() == [(denial(Refusal.SECRET_MISSING), 1)]


def test_a_request_that_waits_for_room_gets_the_secret_of_when_it_goes() -> None:
    wired = Wired()
    wired.server.update_settings({SettingCodes.MAX_CONCURRENT_STREAMS: 1})
    wired.flow()
    first = wired.ask(asking("/1"))
    second, third = wired.ask(asking("/2")), wired.ask(asking("/3"))
    assert len(heads(wired)) == 1
    wired.guest.reset_stream(third, ErrorCodes.CANCEL)
    wired.tenant.order = tenant(key="v2").order
    wired.server.send_headers(1, OK, end_stream=True)
    wired.flow()
    assert status(wired, first) == "200"
    assert [dict(head)[":path"] for head in heads(wired)] == ["/1", "/2"]
    assert dict(heads(wired)[1])["authorization"] == "Bearer v2"
    wired.server.send_headers(3, OK, end_stream=True)
    wired.flow()
    assert status(wired, second) == "200"
    assert wired.relay.idle
    assert wired.tenant.held == 0


def test_a_rule_cannot_break_the_protocol_and_may_name_the_host() -> None:
    rule = HeaderRule(domain=HOST, headers={"Host": "inner.test", "Connection": "x", "TE": "y", "Content-Length": "1"})
    wired = Wired(tenant(rule))
    wired.ask(asking(method="POST", content_length="4"), b"body")
    [head] = heads(wired)
    assert dict(head)[":authority"] == "inner.test"
    assert not {"host", "connection", "te"} & dict(head).keys()


def test_trailers_bring_nothing_that_a_rule_or_a_head_says() -> None:
    wired = Wired(strict=False)
    trailers = [("x-sum", "1"), ("authorization", "mine"), ("x-team", "mine"), ("host", "other.test"), ("cookie", "c")]
    wired.ask(asking(method="POST"), b"body", trailers)
    [event] = wired.of_server(TrailersReceived)
    assert event.headers == [("x-sum", "1")]  # type: ignore[attr-defined]


def test_trailers_do_not_hide_a_body_that_is_too_short() -> None:
    wired = Wired()
    stream = wired.ask(asking(method="POST", content_length="9"), b"body", [("x-sum", "1")])
    assert wired.of_guest(StreamReset, stream)
    assert wired.of_server(StreamReset)
    assert not wired.of_server(StreamEnded)
    wired = Wired()
    with pytest.raises(ProtocolError):
        wired.ask(asking(method="POST", content_length="3"), b"body")


def test_answers_come_whole_with_interim_heads_and_trailers() -> None:
    wired = Wired()
    stream = wired.ask(asking(method="POST"), b"ping")
    wired.server.send_headers(1, [(":status", "103"), ("link", "</a>")])
    wired.server.send_headers(1, [*OK, ("alt-svc", 'h3=":443"'), ("connection", "close"), ("x-a", " b ")])
    wired.server.send_data(1, b"pong", pad_length=9)
    wired.server.send_headers(1, [("grpc-status", "0")], end_stream=True)
    wired.flow()
    [interim] = wired.of_guest(InformationalResponseReceived, stream)
    assert interim.headers == [(":status", "103"), ("link", "</a>")]  # type: ignore[attr-defined]
    [answer] = wired.of_guest(ResponseReceived, stream)
    assert answer.headers == [*OK, ("x-a", "b")], "mended, and no invitation to QUIC"  # type: ignore[attr-defined]
    assert body(wired, stream) == b"pong"
    [last] = wired.of_guest(TrailersReceived, stream)
    assert last.headers == [("grpc-status", "0")]  # type: ignore[attr-defined]
    assert wired.relay.idle


@pytest.mark.parametrize("head", [[(":status", "2x0")], [(":status", "101")], [*OK, (":path", "/")], [*OK, ("A", "b")]])
def test_a_broken_answer_ends_its_stream_alone(head: Fields) -> None:
    wired = Wired()
    broken, other = wired.ask(asking("/1")), wired.ask(asking("/2"))
    wired.server.send_headers(1, head)
    wired.server.send_headers(3, OK, end_stream=True)
    wired.flow()
    assert wired.of_guest(StreamReset, broken)
    assert status(wired, other) == "200"


def test_resets_go_on_both_ways() -> None:
    wired = Wired()
    first, second = wired.ask(asking("/1", "POST"), b"body"), wired.ask(asking("/2"))
    wired.guest.reset_stream(second, ErrorCodes.CANCEL)
    wired.server.reset_stream(1, ErrorCodes.ENHANCE_YOUR_CALM)
    wired.flow()
    [theirs] = wired.of_server(StreamReset)
    assert (theirs.stream_id, theirs.error_code) == (3, ErrorCodes.CANCEL)  # type: ignore[attr-defined]
    [ours] = wired.of_guest(StreamReset, first)
    assert ours.error_code == ErrorCodes.ENHANCE_YOUR_CALM  # type: ignore[attr-defined]
    assert wired.relay.idle


def test_an_answer_before_the_whole_request_is_whole_and_the_rest_is_not_wanted() -> None:
    wired = Wired()
    stream = wired.guest.get_next_available_stream_id()
    wired.guest.send_headers(stream, asking(method="POST"))
    wired.guest.send_data(stream, b"x" * 1000)
    wired.flow()
    wired.server.send_headers(1, [(":status", "413")])
    wired.server.send_data(1, b"too large", end_stream=True)
    wired.server.reset_stream(1, ErrorCodes.NO_ERROR)
    wired.flow()
    assert body(wired, stream) == b"too large"
    [reset] = wired.of_guest(StreamReset, stream)
    assert reset.error_code == ErrorCodes.NO_ERROR  # type: ignore[attr-defined]
    assert wired.relay.idle
    assert wired.tenant.held == 0


@pytest.mark.thorough
def test_a_stream_that_nobody_reads_fills_its_own_window_and_stops_no_other() -> None:
    wired = Wired()
    wired.acknowledging = False
    slow, fast = wired.ask(asking("/slow")), wired.ask(asking("/fast"))
    wired.guest.increment_flow_control_window(1 << 30)
    wired.guest.increment_flow_control_window(1 << 30, fast)
    wired.server.send_headers(1, OK)
    wired.server.send_headers(3, OK)
    wired.flow()
    sent = {1: 0, 3: 0}
    for _ in range(3000):
        for stream in sent:
            size = min(16384, wired.server.local_flow_control_window(stream))
            if size:
                wired.server.send_data(stream, bytes(size))
                sent[stream] += size
        wired.flow()
    assert len(body(wired, fast)) == sent[3]
    assert sent[3] > 40_000_000
    assert sent[1] <= (1 << 19) + 65535
    assert wired.tenant.held == sent[1] - len(body(wired, slow))
    wired.relay.close()
    assert wired.tenant.held == 0


def test_a_server_that_takes_nothing_holds_the_guest_to_one_window() -> None:
    wired = Wired()
    wired.acknowledging = False
    stream = wired.guest.get_next_available_stream_id()
    wired.guest.send_headers(stream, asking(method="POST"))
    wired.flow()
    sent = 0
    while room := min(16384, wired.guest.local_flow_control_window(stream)):
        wired.guest.send_data(stream, bytes(room))
        sent += room
        wired.flow()
    assert sent <= (1 << 18) + 65535
    other = wired.ask(asking("/other"))
    wired.server.send_headers(3, OK, end_stream=True)
    wired.flow()
    assert status(wired, other) == "200"


def test_a_goaway_lets_running_streams_end_and_takes_no_more() -> None:
    wired = Wired()
    served, unserved = wired.ask(asking("/1")), wired.ask(asking("/2"))
    goodbye = GoAwayFrame(0, last_stream_id=1, error_code=0)
    wired.relay.server_said(GoAwayFrame(0, last_stream_id=2**31 - 1).serialize(), 0)
    assert not wired.relay.over
    wired.relay.server_said(goodbye.serialize(), 0)
    heard = wired.relay.guest.take()
    assert heard.count(b"\x07\0\0\0\0\0") == 2, "a warning, then the last word"
    wired.guest_heard += wired.guest.receive_data(heard[heard.index(b"\0\0\x04\x03") :])
    [reset] = wired.of_guest(StreamReset, unserved)
    assert reset.error_code == ErrorCodes.REFUSED_STREAM  # type: ignore[attr-defined]
    late = wired.guest.get_next_available_stream_id()
    wired.guest.send_headers(late, asking("/late"), end_stream=True)
    wired.flow()
    assert wired.of_guest(StreamReset, late)
    wired.server.send_headers(1, OK)
    wired.server.send_data(1, b"whole", end_stream=True)
    wired.flow()
    assert body(wired, served) == b"whole"
    assert wired.relay.over


def test_a_guest_that_says_goodbye_still_gets_its_answers() -> None:
    wired = Wired()
    stream = wired.ask(asking())
    wired.relay.guest_said(GoAwayFrame(0, last_stream_id=0).serialize(), 0)
    assert not wired.relay.over
    wired.server.send_headers(1, OK, end_stream=True)
    wired.flow()
    assert status(wired, stream) == "200"
    assert wired.relay.over


def test_a_lost_server_is_told_by_what_was_heard_of_it() -> None:
    wired = Wired()
    waiting, begun, whole = (wired.ask(asking(path)) for path in ("/1", "/2", "/3"))
    head = wired.guest.get_next_available_stream_id()
    wired.guest.send_headers(head, asking(method="HEAD"), end_stream=True)
    wired.flow()
    wired.server.send_headers(3, OK)
    wired.server.send_headers(5, OK)
    wired.server.send_data(5, b"all", end_stream=True)
    wired.relay.server_said(wired.server.data_to_send(), 0)
    wired.relay.server_lost(Refusal.UNREACHABLE)
    wired.flow()
    assert status(wired, waiting) == "502"
    assert status(wired, head) == "502"
    assert body(wired, head) == b""
    assert wired.of_guest(StreamReset, begun)
    assert body(wired, whole) == b"all"
    assert wired.relay.over
    assert wired.tenant.held == 0


@pytest.mark.parametrize(
    "why",
    [
        Refusal.UNREACHABLE,
        Refusal.UNTRUSTED,
        Refusal.UNRESOLVED,
        Refusal.PROXY_FAILED,
        Refusal.PROXY_PRIVATE,
        Refusal.PROXY_UNTRUSTED,
        Refusal.PROXY_LOCKED,
        Refusal.PROXY_DECLINED,
    ],
)
def test_without_a_server_every_request_hears_why(why: Refusal) -> None:
    wired = Wired(refused=why)
    stream = wired.ask(asking(method="POST"), b"body")
    assert status(wired, stream) == "502"
    assert why.value.encode() in body(wired, stream)
    assert not wired.of_guest(StreamReset, stream)
    assert wired.denied() == [(denial(why, TCP), 1)]


def test_without_a_server_a_request_s_own_fault_is_told_first() -> None:
    wired = Wired(tenant(other="x"), refused=Refusal.UNTRUSTED)
    assert status(wired, wired.ask(asking(authority="other.test"))) == "421"
    assert status(wired, wired.ask(asking())) == "403"
    assert wired.denied() == [(denial(Refusal.OTHER_HOST), 1), (denial(Refusal.SECRET_MISSING), 1)]


def test_a_push_is_no_answer() -> None:
    wired = Wired()
    wired.ask(asking())
    wired.server.remote_settings[SettingCodes.ENABLE_PUSH] = 1
    wired.server.remote_settings.acknowledge()
    wired.server.push_stream(1, 2, asking("/pushed"))
    with pytest.raises(ProtocolError):
        wired.flow()


def test_pings_are_answered_here() -> None:
    wired = Wired()
    wired.guest.ping(b"12345678")
    wired.flow()
    assert [event for event in wired.guest_heard if isinstance(event, PingAckReceived)]


def test_more_streams_than_may_be_are_refused_and_the_rest_goes_on() -> None:
    wired = Wired(before_settings=True)
    for number in range(130):
        wired.guest.send_headers(2 * number + 1, asking(f"/{number}"), end_stream=True)
    wired.flow()
    refused = [event.stream_id for event in wired.guest_heard if isinstance(event, StreamReset)]
    assert refused == [257, 259]
    assert len(heads(wired)) == 128
    with pytest.raises(ProtocolError):  # by now it has heard the limit
        wired.frame(HeadersFrame(261, wired.guest.encoder.encode(asking()), flags=["END_HEADERS", "END_STREAM"]))


def test_a_body_for_a_stream_that_never_was_ends_the_connection() -> None:
    wired = Wired()
    with pytest.raises(ProtocolError):
        wired.frame(DataFrame(99, b"x"))


@pytest.mark.thorough
def test_rapid_resets_end_the_connection() -> None:
    wired = Wired()

    def reset_one() -> None:
        stream = wired.guest.get_next_available_stream_id()
        wired.guest.send_headers(stream, asking(), end_stream=True)
        wired.guest.reset_stream(stream, ErrorCodes.CANCEL)
        wired.flow()

    for _ in range(1000):
        reset_one()
    with pytest.raises(TooMuch):
        reset_one()
