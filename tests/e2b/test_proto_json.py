"""Requests in every spelling that protobuf's JSON allows."""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Iterator

import pytest

from firkin.e2b.connect_codec import RpcError
from firkin.e2b.proto_json import Message, decode, read_bytes

from .conftest import RunningServer
from .raw import RawClient, output, raw_client

FS = "filesystem.Filesystem"


class Inner(Message):
    size: int = 7


class Outer(Message):
    name: str = "none"
    inner: Inner | None = None
    many: list[Inner] | None = None
    envs: dict[str, str] | None = None


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[RawClient]:
    with raw_client(server) as made:
        yield made


def test_unknown_fields_are_ignored_and_null_is_absent() -> None:
    text = b'{"name": null, "new": [1], "inner": {"size": null, "x": {}}, "many": [{"size": "4294967295"}]}'
    assert decode(text, Outer) == Outer("none", Inner(7), [Inner(4294967295)])


@pytest.mark.parametrize("text", [b"{", b"\xff", b"[]", b'{"name": 7}', b'{"envs": {"A": null}}', b"[" * 100_000])
def test_what_is_no_message_is_refused(text: bytes) -> None:
    with pytest.raises(RpcError):
        decode(text, Outer)


@pytest.mark.parametrize(
    ("text", "data"),
    [("", b""), ("aGk=", b"hi"), ("aGk", b"hi"), ("-_8=", b"\xfb\xff"), ("-_8", b"\xfb\xff"), ("+/8", b"\xfb\xff")],
)
def test_bytes_are_base64_of_either_kind(text: str, data: bytes) -> None:
    assert read_bytes(text) == data


@pytest.mark.parametrize("text", ["!", "a", "a-+a", "ä"])
def test_what_is_no_base64_is_refused(text: str) -> None:
    with pytest.raises(RpcError):
        read_bytes(text)


def test_a_newer_client_is_understood(client: RawClient) -> None:
    start = {"process": {"cmd": "echo", "args": ["hi"], "cwd": None, "new": 1}, "tag": None, "pty": None, "odd": {}}
    assert output(client.stream("process.Process/Start", start)) == b"hi\n"
    assert client.unary("process.Process/List", {"odd": 1}).json() == {"processes": []}
    assert client.unary(f"{FS}/Stat", {"path": "/tmp", "followSymlinks": True}).status_code == 200
    assert client.unary(f"{FS}/ListDir", {"path": "/tmp", "depth": 4294967295, "odd": 1}).status_code == 200
    watcher = client.unary(f"{FS}/CreateWatcher", {"path": "/tmp", "recursive": None, "odd": 1}).json()
    assert client.unary(f"{FS}/GetWatcherEvents", {**watcher, "odd": 1}).json() == {"events": []}
    assert client.unary(f"{FS}/RemoveWatcher", {**watcher, "odd": 1}).json() == {}
    kind = {"Content-Type": "application/octet-stream"}
    client.envd("POST", "/files?path=/tmp/part", headers=kind, content=b"x")
    asked = {"source_paths": ["/tmp/part"], "destination": "/tmp/whole", "odd": 1}
    assert client.envd("POST", "/files/compose", json=asked).status_code == 200


def test_requests_may_be_gzip(client: RawClient) -> None:
    packed = gzip.compress(json.dumps({"path": "/tmp"}).encode())
    answer = client.unary(f"{FS}/Stat", packed, **{"content-encoding": "gzip"})
    assert answer.json()["entry"]["path"] == "/tmp"
    message = gzip.compress(json.dumps({"process": {"cmd": "echo", "args": ["hi"]}}).encode())
    body = struct.pack(">BI", 1, len(message)) + message
    events = client.stream("process.Process/Start", body, **{"connect-content-encoding": "gzip"})
    assert output(events) == b"hi\n"


@pytest.mark.thorough
def test_a_bomb_ends_at_the_limit_of_a_message(client: RawClient) -> None:
    bomb = gzip.compress(bytes(200_000_000), 1)
    answer = client.unary(f"{FS}/Stat", bomb, **{"content-encoding": "gzip"})
    assert answer.json()["code"] == "resource_exhausted"
    body = struct.pack(">BI", 1, len(bomb)) + bomb
    (end,) = client.stream("process.Process/Start", body, **{"connect-content-encoding": "gzip"})
    assert end["error"]["code"] == "resource_exhausted"
