"""How a request names a place, a program and a link."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator

import pytest

from firkin.e2b.signatures import READ, sign

from .conftest import RunningServer
from .raw import RawClient, output, raw_client

FS = "filesystem.Filesystem"


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[RawClient]:
    with raw_client(server) as made:
        yield made


@pytest.mark.parametrize(("user", "place"), [(None, "/home/user"), ("user", "/home/user"), ("root", "/root")])
def test_no_path_and_no_cwd_are_the_same_place(client: RawClient, user: str | None, place: str) -> None:
    who = {} if user is None else {"authorization": "Basic " + base64.b64encode(f"{user}:".encode()).decode()}
    started = client.stream("process.Process/Start", {"process": {"cmd": "pwd"}}, **who)
    assert output(started).decode() == f"{place}\n"
    assert client.unary(f"{FS}/Stat", {"path": ""}, **who).json()["entry"]["path"] == place
    assert client.unary(f"{FS}/MakeDir", {"path": f"{place}/shown"}, **who).status_code in (200, 409)
    listed = client.unary(f"{FS}/ListDir", {"path": ""}, **who).json()["entries"]
    assert f"{place}/shown" in [entry["path"] for entry in listed]


@pytest.mark.parametrize("tag", ["my tag", "é/…", "999", "t" * 1024])
def test_a_tag_is_free_text(client: RawClient, tag: str) -> None:
    start = {"process": {"cmd": "sh", "args": ["-c", "exit 4"]}, "tag": tag}
    assert client.stream("process.Process/Start", start)[-1] == {}
    events = client.stream("process.Process/Connect", {"process": {"tag": tag}})
    assert events[-2]["event"]["end"]["exitCode"] == 4


def test_a_tag_that_nobody_has_is_called_a_tag(client: RawClient) -> None:
    for selector, text in (({"tag": "12345"}, "tag 12345"), ({"pid": 12345}, "pid 12345")):
        (end,) = client.stream("process.Process/Connect", {"process": selector})
        assert end["error"] == {"code": "not_found", "message": f"process with {text} not found"}


def test_a_variable_may_have_any_name_that_the_kernel_takes(client: RawClient) -> None:
    start = {"process": {"cmd": "env", "envs": {"MY VAR": "x", "1-2": "y"}}}
    assert {b"MY VAR=x", b"1-2=y"} <= set(output(client.stream("process.Process/Start", start)).splitlines())


def test_a_link_from_before_1970_has_expired(client: RawClient) -> None:
    token = client.sandbox["envdAccessToken"]
    link = {"path": "/f", "signature": sign("/f", READ, "", token, -5), "signature_expiration": "-5"}
    bare = {name: value for name, value in client.headers().items() if name != "X-Access-Token"}
    answer = client.http.get("/files", params=link, headers=bare)
    assert answer.json() == {"code": 401, "message": "signature is already expired"}


def test_what_others_add_to_a_signed_link_does_not_matter(client: RawClient) -> None:
    expires = int(time.time()) + 60
    signature = sign("/etc/passwd", READ, "", client.sandbox["envdAccessToken"], expires)
    link = {"path": "/etc/passwd", "signature": signature, "signature_expiration": str(expires), "utm_source": "mail"}
    bare = {name: value for name, value in client.headers().items() if name != "X-Access-Token"}
    for headers in (bare, {}):
        assert client.http.get("/files", params=link, headers=headers).status_code == 200
