"""Frames come out as they went in, however the bytes were cut, and nonsense is refused early."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import firkin
from firkin.wire.frames import (
    CREDIT,
    DATA,
    EOF,
    HEADER,
    HEADER_SIZE,
    HELLO,
    MAX_PAYLOAD,
    OPEN,
    FrameReader,
    WireError,
    credit,
    credit_amount,
    frame,
)

FRAMES = [(OPEN, 1, b'{"op":"ping"}'), (DATA, 1, b"x" * 300), (EOF, 1, b""), (CREDIT, 2**32 - 1, b"\1\0\0\0")]
ENCODED = b"".join(frame(*one) for one in FRAMES)

some_frames = st.lists(
    st.tuples(st.integers(OPEN, HELLO), st.integers(0, 2**32 - 1), st.binary(max_size=200)), max_size=10
)


def read(pieces: list[bytes]) -> list[tuple[int, int, bytes]]:
    reader = FrameReader()
    return [found for piece in pieces for found in reader.feed(piece)]


@pytest.mark.thorough
@pytest.mark.parametrize("split", range(len(ENCODED) + 1))
def test_frames_survive_every_split_in_two(split: int) -> None:
    assert read([ENCODED[:split], ENCODED[split:]]) == FRAMES


@pytest.mark.parametrize("step", [1, 2, 3, 5, 8, 9, 10, 99])
def test_frames_survive_any_step(step: int) -> None:
    assert read([ENCODED[i : i + step] for i in range(0, len(ENCODED), step)]) == FRAMES


@pytest.mark.thorough
@settings(max_examples=80, deadline=None)
@given(frames=some_frames, cuts=st.lists(st.integers(0, 3000), max_size=12))
def test_frames_survive_any_cuts(frames: list[tuple[int, int, bytes]], cuts: list[int]) -> None:
    encoded = b"".join(frame(*one) for one in frames)
    ends = [0, *sorted(min(cut, len(encoded)) for cut in cuts), len(encoded)]
    assert read([encoded[a:b] for a, b in pairwise(ends)]) == frames


@pytest.mark.thorough
@settings(max_examples=200, deadline=None)
@given(junk=st.binary(max_size=400))
def test_junk_is_frames_or_a_wire_error(junk: bytes) -> None:
    try:
        found = read([junk])
    except WireError:
        return
    assert b"".join(frame(*one) for one in found) == junk[: sum(HEADER_SIZE + len(p) for _, _, p in found)]


def test_an_oversized_frame_is_refused_by_its_header_alone() -> None:
    with pytest.raises(WireError, match="the limit is"):
        FrameReader().feed(HEADER.pack(MAX_PAYLOAD + 1, DATA, 1))


def test_the_largest_frame_is_accepted() -> None:
    assert read([frame(DATA, 1, bytes(MAX_PAYLOAD))]) == [(DATA, 1, bytes(MAX_PAYLOAD))]


def test_a_payload_above_the_limit_is_not_encoded() -> None:
    with pytest.raises(ValueError, match="above the limit"):
        frame(DATA, 1, bytes(MAX_PAYLOAD + 1))


@pytest.mark.parametrize("kind", [0, 11, 255])
def test_an_unknown_kind_is_refused(kind: int) -> None:
    with pytest.raises(WireError, match="unknown frame kind"):
        FrameReader().feed(HEADER.pack(0, kind, 1))


def test_credit_comes_back_as_granted() -> None:
    [(kind, stream, payload)] = read([credit(7, 65536)])
    assert (kind, stream, credit_amount(payload)) == (CREDIT, 7, 65536)


def test_credit_of_another_size_is_refused() -> None:
    with pytest.raises(WireError, match="3 bytes"):
        credit_amount(b"abc")


def test_the_wire_needs_no_heavy_modules() -> None:
    program = (
        "import sys; import firkin.wire.codec, firkin.wire.frames, firkin.wire.operations;"
        "print(sorted({'dataclasses', 'asyncio', 'logging', 'subprocess', 'socket'} & set(sys.modules)))"
    )
    source = str(Path(firkin.__file__).parent.parent)
    answer = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {source!r}); {program}"],
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
    )
    assert answer.stdout.strip() == "[]"
