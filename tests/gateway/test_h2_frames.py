"""Frames through the gate: at every split, and more of them than anybody needs."""

from __future__ import annotations

from contextlib import suppress

import pytest
from h2.exceptions import ProtocolError
from hyperframe.frame import (
    AltSvcFrame,
    ContinuationFrame,
    DataFrame,
    ExtensionFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)
from hypothesis import given
from hypothesis import strategies as st

from firkin.gateway.h2_frames import MOST_FRAME, PREFACE, Allowance, FrameGate, GoneAway, TooMuch
from tests.gateway.relayed import Wired, asking

GOOD = [
    SettingsFrame(0, {4: 100}),
    HeadersFrame(1, b"abc"),
    ContinuationFrame(1, b"def", flags=["END_HEADERS"]),
    DataFrame(1, b"x" * 100),
    PingFrame(0, b"12345678"),
]


def passed(gate: FrameGate, *frames: Frame, now: float = 0.0) -> list[bytes | GoneAway]:
    return list(gate.passed(b"".join(frame.serialize() for frame in frames), now))


@pytest.mark.thorough
@given(st.lists(st.integers(0, 250), max_size=6))
def test_what_passes_is_the_same_at_every_split(cuts: list[int]) -> None:
    data = PREFACE + b"".join(frame.serialize() for frame in GOOD)
    gate, out, at = FrameGate(server=True), b"", 0
    for cut in [*sorted(cuts), len(data)]:
        out += b"".join(piece for piece in gate.passed(data[at:cut], 0) if isinstance(piece, bytes))
        at = max(at, cut)
    assert out == data


def test_a_frame_too_large_is_refused_before_it_has_come() -> None:
    gate = FrameGate(server=False)
    with pytest.raises(TooMuch):
        list(gate.passed((MOST_FRAME + 1).to_bytes(3, "big") + bytes(6), 0))


def test_what_ends_at_this_hop_goes_no_further() -> None:
    gate = FrameGate(server=False)
    origin = b"\x00\x00\x0c\x0c\x00" + bytes(4) + b"\x00\x0aother.test"
    away = GoAwayFrame(0, last_stream_id=7, error_code=11, additional_data=b"words")
    assert not list(gate.passed(origin, 0))
    assert passed(gate, PriorityFrame(1, depends_on=1), AltSvcFrame(0, b"a", b"h3"), away) == [GoneAway(7, 11)]
    kept = passed(gate, SettingsFrame(0, {4: 9, 0x4242: 7, 3: 1}))
    assert kept == [SettingsFrame(0, {4: 9, 3: 1}).serialize()]


def test_a_block_of_headers_without_end_ends_the_connection() -> None:
    for size, most in ((0, 20), (16000, 6)):
        gate = FrameGate(server=False)
        passed(gate, HeadersFrame(1, bytes(size)))
        with pytest.raises(TooMuch):
            passed(gate, *[ContinuationFrame(1, bytes(size)) for _ in range(most)])


def test_nothing_comes_within_a_block_of_headers() -> None:
    wired = Wired()
    with pytest.raises(ProtocolError):
        wired.raw(HeadersFrame(1, b"").serialize() + PriorityFrame(3).serialize())


@pytest.mark.thorough
@pytest.mark.parametrize(
    "frame",
    [
        PingFrame(0, bytes(8)),
        SettingsFrame(0, {4: 1}),
        SettingsFrame(0, {0x4242: 1}),
        PriorityFrame(1),
        DataFrame(1, b""),
        ExtensionFrame(0xFE, 0),
        RstStreamFrame(1),
        WindowUpdateFrame(0, window_increment=1),
        GoAwayFrame(0),
    ],
)
def test_floods_end_the_connection_and_patience_does_not(frame: Frame) -> None:
    gate = FrameGate(server=True)
    list(gate.passed(PREFACE, 0))
    for second in range(5):
        passed(gate, *[frame] * 30, now=float(second))
    with pytest.raises(TooMuch):
        passed(gate, *[frame] * 25_000, now=6.0)


def test_a_settings_frame_of_thousands_is_refused() -> None:
    with pytest.raises(TooMuch):
        passed(FrameGate(server=False), SettingsFrame(0, {number: 1 for number in range(7, 2000)}))


def test_an_allowance_fills_again() -> None:
    allowance = Allowance(2, 1)
    allowance.take(0)
    allowance.take(0)
    with pytest.raises(TooMuch):
        allowance.take(0.5)
    allowance.take(3.0)


@pytest.mark.thorough
@given(st.binary(max_size=400))
def test_noise_ends_the_connection_or_waits_for_more(noise: bytes) -> None:
    wired = Wired()
    try:
        wired.relay.guest_said(noise, 0)
    except (ProtocolError, TooMuch):
        return
    assert not wired.server_heard or wired.relay.idle


@pytest.mark.thorough
@given(st.data())
def test_noise_in_frames_reaches_no_server_with_a_secret(data: st.DataObject) -> None:
    wired = Wired()
    kind, flags = data.draw(st.integers(0, 12)), data.draw(st.integers(0, 255))
    stream, body = data.draw(st.sampled_from((0, 1, 2, 3, 2**31 - 1))), data.draw(st.binary(max_size=60))
    head = len(body).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big")
    with suppress(ProtocolError, TooMuch):
        wired.raw(head + body)
    assert b"v1" not in wired.relay.server.take()


@pytest.mark.thorough
def test_a_huge_table_that_a_guest_offers_is_not_filled() -> None:
    wired = Wired()
    wired.frame(SettingsFrame(0, {1: 2**32 - 1}))
    stream = wired.ask(asking())
    for number in range(200):
        wired.server.send_headers(1, [(":status", "103"), (f"x-{number}", "y" * 1000)])
        wired.flow()
    assert stream
    assert wired.relay.guest._machine.encoder.header_table._current_size <= 4096


def test_a_bomb_of_headers_ends_the_connection() -> None:
    wired = Wired(strict=False)
    encoder = wired.guest.encoder
    block = encoder.encode([*asking(), ("x-a", "y" * 3900)])
    block += encoder.encode([("x-a", "y" * 3900)]) * 100  # a byte or two each, that mean 4 KB
    with pytest.raises(ProtocolError):
        wired.frame(HeadersFrame(1, block, flags=["END_HEADERS", "END_STREAM"]))
