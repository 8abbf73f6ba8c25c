"""Calls that wait for a program in the sandbox: the client's deadline ends them, and so does its leaving."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Iterator

import httpx
import pytest

from .conftest import RunningServer
from .raw import Json, RawClient, envelope, messages, raw_client

SEND = "process.Process/SendInput"
UNREAD = base64.b64encode(bytes(1_000_000)).decode()


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[RawClient]:
    with raw_client(server) as made:
        yield made


@pytest.fixture
def deaf(client: RawClient) -> Iterator[int]:
    """The pid of a program that reads nothing."""
    start = {"process": {"cmd": "/bin/sleep", "args": ["60"]}, "stdin": True}
    headers = {**client.headers(), "content-type": "application/connect+json"}
    with client.http.stream("POST", "/process.Process/Start", content=envelope(start), headers=headers) as answer:
        (begun,) = messages(next(answer.iter_raw()))
        yield begun["event"]["start"]["pid"]
    client.unary("process.Process/SendSignal", {"process": {"pid": begun["event"]["start"]["pid"]}, "signal": 9})


def unread(pid: int) -> Json:
    return {"process": {"pid": pid}, "input": {"stdin": UNREAD}}


def calls_in_progress(server: RunningServer) -> int:
    async def count() -> int:
        return sum(task.get_name() == "call" for task in asyncio.all_tasks())

    assert server.loop is not None
    return asyncio.run_coroutine_threadsafe(count(), server.loop).result(10)


@pytest.mark.thorough
def test_a_call_ends_with_the_deadline_that_its_client_named(
    client: RawClient, deaf: int, server: RunningServer
) -> None:
    answer = client.unary(SEND, unread(deaf), **{"connect-timeout-ms": "200"})
    assert (answer.status_code, answer.json()["code"]) == (504, "deadline_exceeded")
    assert calls_in_progress(server) == 0


@pytest.mark.thorough
def test_a_streamed_input_ends_with_its_deadline(client: RawClient, deaf: int) -> None:
    body = envelope({"start": {"process": {"pid": deaf}}}) + envelope({"data": {"input": {"stdin": UNREAD}}})
    (end,) = client.stream("process.Process/StreamInput", body, **{"connect-timeout-ms": "200"})
    assert end["error"]["code"] == "deadline_exceeded"


@pytest.mark.thorough
def test_a_client_that_leaves_takes_its_call_with_it(client: RawClient, deaf: int, server: RunningServer) -> None:
    headers = {**client.headers(), "content-type": "application/json"}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}/{SEND}", json=unread(deaf), headers=headers, timeout=0.3)
    until = time.monotonic() + 5  # the server learns of it a moment later
    while calls_in_progress(server) and time.monotonic() < until:
        pass
    assert calls_in_progress(server) == 0
