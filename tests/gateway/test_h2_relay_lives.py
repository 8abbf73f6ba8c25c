"""Many requests at once in any order of events: what is sent arrives whole, and nothing stalls or is left behind."""

from __future__ import annotations

from random import Random

import pytest
from h2.errors import ErrorCodes
from h2.events import DataReceived, Event, RequestReceived, StreamEnded, StreamReset
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.gateway.relayed import Wired, asking


class Life:
    """Both peers do what `chance` says, as far as their protocol lets them."""

    def __init__(self, chance: Random) -> None:
        self.chance = chance
        self.wired = Wired()
        self.up: dict[int, bytearray] = {}
        self.down: dict[int, bytearray] = {}
        self.asking: set[int] = set()
        self.answering: set[int] = set()
        self.answered: set[int] = set()
        self.dead: set[int] = set()

    def step(self) -> None:
        self.chance.choice(
            (self.open, self.upload, self.upload, self.answer, self.download, self.download, self.reset)
        )()
        if self.chance.random() < 0.7:
            self.settle()

    def settle(self) -> None:
        self.wired.flow()
        for event in (*self.wired.guest_heard, *self.wired.server_heard):
            if isinstance(event, StreamReset):
                self.dead.add(event.stream_id)
        self.asking -= self.dead
        self.answering -= self.dead

    def open(self) -> None:
        if len(self.asking) + len(self.answering) > 30:
            return
        stream = self.wired.guest.get_next_available_stream_id()
        self.wired.guest.send_headers(stream, asking(f"/{stream}", "POST"))
        self.up[stream], self.down[stream] = bytearray(), bytearray()
        self.asking.add(stream)

    def upload(self) -> None:
        if self.asking:
            stream = self.chance.choice(sorted(self.asking))
            ends = self.chance.random() < 0.2
            self.up[stream] += self._send(self.wired.guest, stream, ends=ends)
            if ends:
                self.asking.discard(stream)

    def answer(self) -> None:
        self.settle()
        for event in self.wired.of_server(RequestReceived):
            stream = event.stream_id  # type: ignore[attr-defined]
            if stream not in self.answered | self.dead:
                self.wired.server.send_headers(stream, [(":status", "200")])
                self.answering.add(stream)
                self.answered.add(stream)

    def download(self) -> None:
        self.settle()
        if self.answering:
            stream = self.chance.choice(sorted(self.answering))
            ends = self.chance.random() < 0.2
            self.down[stream] += self._send(self.wired.server, stream, ends=ends)
            if ends:
                self.answering.discard(stream)

    def reset(self) -> None:
        self.settle()
        if self.chance.random() < 0.3 and self.asking | self.answering:
            stream = self.chance.choice(sorted(self.asking | self.answering))
            peer = self.chance.choice((self.wired.guest, self.wired.server))
            if stream in peer.streams and not peer.streams[stream].closed:
                peer.reset_stream(stream, ErrorCodes.CANCEL)
                self.dead.add(stream)
                self.settle()

    def finish(self) -> None:
        """Everything that is open is ended, and then all of it must have arrived."""
        self.answer()
        for stream in sorted(self.asking):
            self.wired.guest.end_stream(stream)
        for stream in sorted(self.answering):
            self.wired.server.end_stream(stream)
        self.settle()

    def _send(self, machine: object, stream: int, *, ends: bool) -> bytes:
        room = min(machine.local_flow_control_window(stream), 16384)  # type: ignore[attr-defined]
        data = self.chance.randbytes(min(room, self.chance.choice((0, 1, 100, 16384))))
        padded = self.chance.random() < 0.2 and len(data) + 10 < room and len(data) < 16000
        machine.send_data(stream, data, end_stream=ends, pad_length=9 if padded else None)  # type: ignore[attr-defined]
        return data


def arrived(events: list[Event], stream: int) -> bytes:
    return b"".join(event.data for event in events if isinstance(event, DataReceived) and event.stream_id == stream)


@pytest.mark.thorough
@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32))
def test_whatever_happens_what_is_not_reset_arrives_whole(seed: int) -> None:
    life = Life(Random(seed))
    for _ in range(120):
        life.step()
    life.finish()
    wired = life.wired
    for stream in life.up:
        if stream not in life.dead:
            assert arrived(wired.server_heard, stream) == life.up[stream]
            assert arrived(wired.guest_heard, stream) == life.down[stream]
            assert wired.of_guest(StreamEnded, stream)
    assert wired.relay.idle
    assert wired.tenant.held == 0
