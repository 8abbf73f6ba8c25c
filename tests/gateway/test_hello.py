"""ClientHellos: real ones at every split, and broken ones."""

from __future__ import annotations

import ssl
import struct
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firkin.gateway.hello import MOST_HELLO, NotTls, is_complete, protocols, server_name


def hello(name: str | None = "api.test", offered: tuple[str, ...] = ()) -> bytes:
    context = ssl.create_default_context()
    if offered:
        context.set_alpn_protocols(list(offered))
    context.check_hostname = False
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


@pytest.mark.thorough
def test_the_name_is_found_at_every_split() -> None:
    data = hello()
    for size in range(len(data)):
        assert not is_complete(data[:size])
    assert is_complete(data)
    assert server_name(data) == "api.test"
    assert server_name(hello(None)) is None


@pytest.mark.thorough
def test_the_protocols_are_told_in_their_order() -> None:
    assert protocols(hello()) == ()
    assert protocols(hello(offered=("h2", "http/1.1", "x"))) == (b"h2", b"http/1.1", b"x")
    assert server_name(hello(offered=("h2",))) == "api.test"
    broken = hello(offered=("h2",)).replace(b"\x00\x03\x02h2", b"\x00\x03\x05h2")
    with pytest.raises(NotTls):
        protocols(broken)


def test_a_hello_may_come_in_many_records() -> None:
    body = hello()[5:]
    pieces = [body[at : at + 7] for at in range(0, len(body), 7)]
    data = b"".join(b"\x16\x03\x01" + struct.pack("!H", len(piece)) + piece for piece in pieces)
    assert not is_complete(data[:-1])
    assert server_name(data) == "api.test"


NO_HELLOS = (b"GET / HTTP/1.1\r\n", b"\x16\x02", b"\x16\x03\x01\0\0", b"\x16\x03\x01\0\x04\x02\0\0\0", b"\x15\x03")


@pytest.mark.parametrize("data", NO_HELLOS)
def test_what_is_no_hello_is_told_at_once(data: bytes) -> None:
    with pytest.raises(NotTls):
        is_complete(data)


def test_an_endless_hello_is_given_up() -> None:
    record = b"\x16\x03\x01\x40\x00" + b"\x01\xff\xff\xff" + bytes(16380)
    with pytest.raises(NotTls):
        is_complete((record + b"\x16\x03\x01\x40\x00" + bytes(16384))[: MOST_HELLO + 1])


def _with_extensions(extensions: bytes) -> bytes:
    body = (
        b"\x03\x03"
        + bytes(32)
        + b"\0"
        + b"\0\x02\x13\x01"
        + b"\x01\0"
        + struct.pack("!H", len(extensions))
        + extensions
    )
    message = b"\x01" + len(body).to_bytes(3, "big") + body
    return b"\x16\x03\x01" + struct.pack("!H", len(message)) + message


def _named(*names: bytes) -> bytes:
    entries = b"".join(b"\0" + struct.pack("!H", len(name)) + name for name in names)
    body = struct.pack("!H", len(entries)) + entries
    return b"\0\0" + struct.pack("!H", len(body)) + body


@pytest.mark.parametrize(
    "extensions",
    [
        _named(b"a.test") + _named(b"b.test"),
        _named(b"a.test", b"b.test"),
        _named(b"127.0.0.1"),
        _named(b"a.test\0.evil"),
        _named(b""),
        _named(b"a.test")[:-1],
        b"\0\0\0\0",
    ],
)
def test_two_names_or_none_that_could_be_is_no_hello(extensions: bytes) -> None:
    with pytest.raises(NotTls):
        server_name(_with_extensions(extensions))


def test_only_an_encrypted_name_is_no_name() -> None:
    assert server_name(_with_extensions(b"\xfe\x0d\0\x04abcd")) is None


@given(st.binary(max_size=600))
def test_nothing_breaks_it(data: bytes) -> None:
    with suppress(NotTls):
        if is_complete(data):
            server_name(data)
