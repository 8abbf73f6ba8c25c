"""A client that is answered before it has sent everything gets to read the answer."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from firkin.e2b import protocol

from .conftest import RunningServer

PIECE = bytes(256 * 1024)
MUCH = 64 * 1024 * 1024  # more than fits between two sockets
REFUSED = b"HTTP/1.1 401 "


@pytest.fixture
def client(server: RunningServer) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connected:
        yield connected


def create(length: int, *headers: str) -> bytes:
    """The head of a request without a key."""
    lines = ["POST /v2/sandboxes HTTP/1.1", "Host: x", f"Content-Length: {length}", *headers]
    return "\r\n".join([*lines, "", ""]).encode()


def send_all(client: socket.socket, size: int) -> None:
    for _ in range(size // len(PIECE)):
        client.sendall(PIECE)


def send_chunks(client: socket.socket, size: int) -> None:
    for _ in range(size // len(PIECE)):
        client.sendall(b"%x\r\n%b\r\n" % (len(PIECE), PIECE))


def read_answer(client: socket.socket) -> bytes:
    """One answer, with its body."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += client.recv(65536)
    head, _, body = data.partition(b"\r\n\r\n")
    length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
    while len(body) < int(length.partition(b":")[2]):
        body += client.recv(65536)
    return head


def read_to_end(client: socket.socket) -> bytes:
    data = b""
    while chunk := client.recv(65536):
        data += chunk
    return data


def test_who_sends_everything_first_reads_the_answer_and_goes_on(client: socket.socket) -> None:
    client.sendall(create(MUCH))
    send_all(client, MUCH)
    assert read_answer(client).startswith(REFUSED)
    client.sendall(create(0))
    assert read_answer(client).startswith(REFUSED)


def test_who_wants_no_second_answer_is_not_reset_either(client: socket.socket) -> None:
    client.sendall(create(MUCH, "Connection: close"))
    send_all(client, MUCH)
    assert read_to_end(client).startswith(REFUSED)


def test_who_waits_for_the_end_gets_it_at_once(client: socket.socket) -> None:
    began = time.monotonic()
    client.sendall(create(MUCH, "Connection: close") + PIECE)
    assert read_to_end(client).startswith(REFUSED)
    assert time.monotonic() - began < protocol.DROPS_FOR_S / 2


def test_a_body_that_was_not_begun_is_not_waited_for(client: socket.socket) -> None:
    client.sendall(create(1000, "Expect: 100-continue"))
    answer = read_to_end(client).lower()
    assert answer.startswith(REFUSED.lower())
    assert b"connection: close" in answer


def test_a_body_too_long_to_drop_ends_the_connection(client: socket.socket) -> None:
    client.sendall(create(protocol.MOST_DROPPED + 1) + PIECE)
    answer = read_to_end(client).lower()
    assert answer.startswith(REFUSED.lower())
    assert b"connection: close" in answer


@pytest.mark.parametrize("headers", [(), ("Connection: close",)])
def test_nobody_sends_for_ever(
    client: socket.socket, monkeypatch: pytest.MonkeyPatch, headers: tuple[str, ...]
) -> None:
    monkeypatch.setattr(protocol, "MOST_DROPPED", 8 * len(PIECE))
    head = ["POST /v2/sandboxes HTTP/1.1", "Host: x", "Transfer-Encoding: chunked", *headers]
    client.sendall("\r\n".join([*head, "", ""]).encode())
    with pytest.raises(OSError, match=r"reset|[Bb]roken"):
        send_chunks(client, MUCH)


@pytest.mark.parametrize("headers", [(), ("Connection: close",)])
def test_nobody_is_waited_for_long(
    client: socket.socket, monkeypatch: pytest.MonkeyPatch, headers: tuple[str, ...]
) -> None:
    monkeypatch.setattr(protocol, "DROPS_FOR_S", 0.05)
    client.sendall(create(1000, *headers))
    assert read_to_end(client).startswith(REFUSED)


def test_bytes_that_are_no_request_are_answered_too(client: socket.socket) -> None:
    client.sendall(b"nonsense\r\n\r\n")
    send_all(client, MUCH)
    assert read_to_end(client).startswith(b"HTTP/1.1 400 ")


@pytest.mark.thorough
def test_an_answer_in_two_pieces_does_not_wait_for_an_acknowledgement(client: socket.socket) -> None:
    def asked() -> float:
        began = time.monotonic()
        client.sendall(create(0))
        read_answer(client)
        return time.monotonic() - began

    times = [asked() for _ in range(40)]  # the first are acknowledged at once
    assert min(times[20:]) < 0.03  # as against 0.04, which is how long an acknowledgement may be put off
