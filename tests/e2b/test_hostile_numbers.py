"""Numbers, depths and instants that a parser stumbles over are refused like every other mistake."""

from __future__ import annotations

import base64
from collections.abc import Iterator

import pytest

from firkin.e2b.connect_codec import RpcError, timeout_s
from firkin.e2b.numbers import read_whole
from firkin.e2b.operators import operator_token
from firkin.gateway.dialling import proxy_address
from firkin.gateway.judgement import Refused as GatewayRefused
from firkin.law.network import EgressProxy

from .conftest import SECRET, RunningServer
from .raw import RawClient, raw_client

LONG = "9" * 5000
NAIVE = base64.urlsafe_b64encode(b"2026-01-01__x").decode()
DEEP = b'{"x":' * 8_000 + b"1" + b"}" * 8_000


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[RawClient]:
    with raw_client(server) as made:
        yield made


@pytest.mark.parametrize("text", ["", "-", "--5", "²", "٣", "5 ", "5\n", "+5", "1" * 19, LONG])
def test_what_is_no_number_of_a_machine_is_none(text: str) -> None:
    assert read_whole(text) is None
    assert read_whole(text.encode()) is None


@pytest.mark.parametrize(("text", "number"), [("0", 0), ("-5", -5), ("007", 7), ("9" * 18, 10**18 - 1)])
def test_ascii_digits_are_a_number(text: str, number: int) -> None:
    assert read_whole(text) == read_whole(text.encode()) == number


@pytest.mark.parametrize("query", ["owner=%FF&expires=1&signature=x", "owner=a&expires=%C2%B2", f"expires={LONG}", ""])
def test_an_upload_link_that_nobody_made_is_refused_without_a_key(client: RawClient, query: str) -> None:
    answer = client.api("PUT", f"/build-files/{'a' * 64}?{query}", b"x", key=None)
    assert (answer.status_code, answer.json()["message"][:13]) == (403, "the signature")


@pytest.mark.parametrize("text", [LONG, "-5", "\xb2"])
def test_a_timeout_of_a_call_must_be_a_number(text: str) -> None:
    with pytest.raises(RpcError, match="at most 10 digits"):
        timeout_s(text.encode("latin-1"))


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/sandboxes", b'{"templateID":"base","mcp":' + DEEP + b"}"),
        ("POST", "/v2/sandboxes", b'{"templateID":"base","metadata":' + DEEP + b"}"),
        ("PUT", "/firkin/v1/pools/base", DEEP),
        ("POST", "/firkin/v1/templates", DEEP),
    ],
)
def test_a_body_that_is_nested_too_deep_is_refused(client: RawClient, method: str, path: str, body: bytes) -> None:
    answer = client.api(method, path, body, headers={"X-Firkin-Operator": operator_token(SECRET)})
    assert answer.status_code == 400, answer.text


def test_a_list_of_files_that_is_nested_too_deep_is_refused(client: RawClient) -> None:
    answer = client.envd("POST", "/files/compose", content=b'{"odd":' + DEEP + b"}")
    assert answer.status_code == 400, answer.text


@pytest.mark.parametrize(
    "path",
    [
        "/v2/sandboxes?limit=--5",
        "/snapshots?limit=--5",
        "/secrets?limit=--5",
        f"/events/sandboxes?offset={'-' * 18}",
        "/firkin/v1/events?after=--1",
        *(f"{place}?nextToken={NAIVE}" for place in ("/v2/sandboxes", "/snapshots", "/secrets")),
    ],
)
def test_a_page_that_nobody_named_is_refused(client: RawClient, path: str) -> None:
    assert client.api("GET", path).status_code == 400


@pytest.mark.parametrize("address", ["h:²", f"h:{LONG}", "h:-1", "h:0", "h:65536"])
def test_a_proxys_port_must_be_one(client: RawClient, address: str) -> None:
    network = {"egressProxy": {"address": address}}
    made = client.api("POST", "/v2/sandboxes", {"templateID": "base", "network": network})
    put = client.api("PUT", f"/sandboxes/{client.sandbox['sandboxID']}/network", network)
    assert [answer.status_code for answer in (made, put)] == [400, 400]
    with pytest.raises(GatewayRefused):
        proxy_address(EgressProxy(address=address))


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/volumes", '{"name": "huge", "sizeMB": %s}'),
        ("/v3/templates", '{"name": "huge", "memoryMB": %s}'),
        ("/v3/templates", '{"name": "huge", "minFreeDiskMb": %s}'),
        ("/v3/templates", '{"name": "huge", "cpuCount": %s}'),
    ],
)
@pytest.mark.parametrize("digits", [20, 4299])
def test_an_amount_without_bounds_is_refused(client: RawClient, path: str, body: str, digits: int) -> None:
    assert client.api("POST", path, (body % ("9" * digits)).encode()).status_code == 400
