"""Input for a program: what is for a pipe does not reach a terminal, nor the other way round."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from .conftest import RunningServer
from .raw import Json, RawClient, envelope, messages, raw_client

SEND = "process.Process/SendInput"
STREAM = "process.Process/StreamInput"
NO_PIPE = "error writing to stdin: tty assigned to process"
NO_TERMINAL = "error writing to tty: tty not assigned to process"


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[RawClient]:
    with raw_client(server) as made:
        yield made


@contextmanager
def reading(client: RawClient, **more: object) -> Iterator[tuple[Json, Iterator[bytes]]]:
    """A program that says what it reads: how to name it, and its output."""
    start = {"process": {"cmd": "/bin/cat"}, "stdin": True, **more}
    headers = {**client.headers(), "content-type": "application/connect+json"}
    with client.http.stream("POST", "/process.Process/Start", content=envelope(start), headers=headers) as answer:
        output = answer.iter_raw()
        (begun,) = messages(next(output))
        which = {"pid": begun["event"]["start"]["pid"]}
        try:
            yield which, output
        finally:
            client.unary("process.Process/SendSignal", {"process": which, "signal": 9})


def given(kind: str) -> Json:
    return {kind: base64.b64encode(b"hello\n").decode()}


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("more", "right", "wrong", "says"),
    [
        ({}, "stdin", "pty", NO_TERMINAL),
        ({"pty": {"size": {"rows": 24, "cols": 80}}}, "pty", "stdin", NO_PIPE),
    ],
)
def test_input_of_the_wrong_kind_is_refused(
    client: RawClient, more: dict[str, object], right: str, wrong: str, says: str
) -> None:
    with reading(client, **more) as (which, output):
        refused = client.unary(SEND, {"process": which, "input": given(wrong)})
        assert (refused.status_code, refused.json()) == (500, {"code": "internal", "message": says})
        body = envelope({"start": {"process": which}}) + envelope({"data": {"input": given(wrong)}})
        (end,) = client.stream(STREAM, body)
        assert end["error"] == {"code": "internal", "message": says}
        assert client.unary(SEND, {"process": which, "input": given(right)}).status_code == 200
        (data, *_) = messages(next(output))
        said = base64.b64decode(data["event"]["data"]["stdout" if right == "stdin" else "pty"])
        assert said[:1] == b"h"  # a terminal echoes as it is typed into


@pytest.mark.thorough
def test_a_stream_of_input_for_nobody_is_refused_at_its_start(client: RawClient) -> None:
    (end,) = client.stream(STREAM, {"start": {"process": {"pid": 99999}}})
    assert end["error"]["code"] == "not_found"


@pytest.mark.parametrize(("number", "word"), [(1, "hangup"), (2, "interrupt")])
def test_a_program_is_interrupted_and_hung_up_by_the_number_of_the_signal(
    client: RawClient, number: int, word: str
) -> None:
    with reading(client) as (which, output):
        assert client.unary("process.Process/SendSignal", {"process": which, "signal": number}).status_code == 200
        assert f'"status":"signal: {word}"'.encode() in b"".join(output)
