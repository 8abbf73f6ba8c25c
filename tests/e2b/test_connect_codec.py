"""The Connect protocol's bytes, without a server."""

from __future__ import annotations

import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firkin.e2b.connect_codec import (
    Code,
    EnvelopeReader,
    RpcError,
    check_version,
    end_of_stream,
    envelope,
    gunzip,
    is_gzip,
    timeout_s,
)

MESSAGES = [b"{}", b'{"a":1}', b"", b"x" * 300]
STREAM = b"".join(envelope(message) for message in MESSAGES) + end_of_stream()


@pytest.mark.parametrize("step", [1, 2, 3, 5, 7, 64, 10_000])
def test_messages_survive_any_step(step: int) -> None:
    reader = EnvelopeReader(1000)
    found = [one for at in range(0, len(STREAM), step) for one in reader.feed(STREAM[at : at + step])]
    reader.finish()
    assert [one.payload for one in found] == [*MESSAGES, b"{}"]
    assert [one.ends_stream for one in found] == [False] * len(MESSAGES) + [True]


def test_messages_survive_every_single_split() -> None:
    for at in range(len(STREAM) + 1):
        reader = EnvelopeReader(1000)
        found = [*reader.feed(STREAM[:at]), *reader.feed(STREAM[at:])]
        assert [one.payload for one in found] == [*MESSAGES, b"{}"]


@pytest.mark.thorough
@given(st.lists(st.binary(max_size=64)), st.lists(st.integers(1, 50), min_size=1))
def test_whatever_is_written_is_read(messages: list[bytes], steps: list[int]) -> None:
    data = b"".join(envelope(message) for message in messages)
    reader, found, turn = EnvelopeReader(64), [], 0
    while data:
        step = steps[turn % len(steps)]
        found += reader.feed(data[:step])
        data, turn = data[step:], turn + 1
    assert [one.payload for one in found] == messages


def test_a_message_beyond_the_limit_is_refused_before_it_is_read() -> None:
    with pytest.raises(RpcError) as refused:
        EnvelopeReader(10).feed(b"\x00\x00\x00\x00\x0b")
    assert refused.value.code is Code.RESOURCE_EXHAUSTED


def test_a_compressed_message_is_refused() -> None:
    with pytest.raises(RpcError) as refused:
        EnvelopeReader(10).feed(b"\x01\x00\x00\x00\x00")
    assert refused.value.code is Code.UNIMPLEMENTED


def test_a_stream_that_breaks_off_is_told() -> None:
    reader = EnvelopeReader(10)
    reader.feed(b"\x00\x00")
    with pytest.raises(RpcError, match="in the middle"):
        reader.finish()


def test_the_end_of_a_stream_carries_the_error() -> None:
    data = end_of_stream(RpcError(Code.NOT_FOUND, "nobody"))
    assert data[0] == 2
    assert json.loads(data[5:]) == {"error": {"code": "not_found", "message": "nobody"}}


@pytest.mark.parametrize(("header", "seconds"), [(None, None), (b"0", None), (b"1500", 1.5)])
def test_a_deadline_is_in_milliseconds(header: bytes | None, seconds: float | None) -> None:
    assert timeout_s(header) == seconds


@pytest.mark.parametrize("header", [b"-1", b"1.5", b"", b"x", b"99999999999"])
def test_a_malformed_deadline_is_refused(header: bytes) -> None:
    with pytest.raises(RpcError) as refused:
        timeout_s(header)
    assert refused.value.code is Code.INVALID_ARGUMENT


def test_an_unknown_version_or_compression_is_refused() -> None:
    check_version(b"1")
    check_version(None)
    assert [is_gzip(encoding) for encoding in (None, b"", b"identity", b"gzip")] == [False, False, False, True]
    with pytest.raises(RpcError):
        check_version(b"2")
    with pytest.raises(RpcError):
        is_gzip(b"br")


def test_packed_and_plain_messages_may_be_mixed_where_gzip_was_announced() -> None:
    data = envelope(gzip.compress(b'{"a":1}', mtime=0), 1) + envelope(b"{}") + envelope(b"", 1)
    reader = EnvelopeReader(1000, gzip=True)
    assert [one.payload for one in reader.feed(data)] == [b'{"a":1}', b"{}", b""]


BOMB = gzip.compress(bytes(10_000_000), mtime=0)


@pytest.mark.parametrize(
    ("packed", "code"),
    [
        (b"plain", Code.INVALID_ARGUMENT),
        (gzip.compress(b"x" * 99, mtime=0)[:-9], Code.INVALID_ARGUMENT),
        (gzip.compress(b"x", mtime=0) * 2, Code.INVALID_ARGUMENT),
        (gzip.compress(b"x" * 101, mtime=0), Code.RESOURCE_EXHAUSTED),
        (BOMB, Code.RESOURCE_EXHAUSTED),
    ],
)
def test_what_is_no_gzip_or_too_much_of_it_is_refused(packed: bytes, code: Code) -> None:
    assert gunzip(gzip.compress(b"x" * 100, mtime=0), 100) == b"x" * 100
    with pytest.raises(RpcError) as refused:
        gunzip(packed, 100)
    assert refused.value.code is code
