"""A field of a query is honoured or refused: by a call that does not have it, when it comes twice, when it is wrong."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import BOB, RunningServer
from .raw import RawClient, raw_client

_SDK = importlib.util.find_spec("e2b.api.client.api")
_PARAM = re.compile(r'params\["(\w+)"\]')
_CALL = re.compile(r'"method": "(\w+)",\s+"url": f?"([^"]+)"')
_REFUSED = "unknown query field"


def sdk_calls() -> list[tuple[str, str, list[str]]]:
    """Every call of the official SDK's client that has a query: method, path, and the names of its fields."""
    assert _SDK is not None
    (folder,) = _SDK.submodule_search_locations or ()
    found = []
    for file in sorted(Path(folder).glob("*/*.py")):
        text = file.read_text()
        names = sorted(set(_PARAM.findall(text)))
        if names:
            (call,) = _CALL.findall(text)
            found.append((call[0].upper(), re.sub(r"\{\w+\}", "x", call[1]), names))
    return found


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[RawClient]:
    with raw_client(server) as made:
        yield made


@pytest.fixture(scope="module")
def template(client: RawClient) -> str:
    asked = client.api("POST", "/v3/templates", {"name": "queried"})
    for _ in range(2):
        assert client.api("POST", "/v3/templates", {"name": "queried"}).status_code == 202
    return str(asked.json()["templateID"])


@pytest.mark.parametrize(("method", "path", "names"), sdk_calls())
def test_no_field_that_the_official_client_sends_is_unknown(
    client: RawClient, method: str, path: str, names: list[str]
) -> None:
    answer = client.api(method, path, params=dict.fromkeys(names, ""))
    assert _REFUSED not in answer.text


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/sandboxes"),
        ("POST", "/v2/sandboxes"),
        ("GET", "/sandboxes/x"),
        ("DELETE", "/sandboxes/x"),
        *(("POST", f"/sandboxes/x/{act}") for act in ("connect", "resume", "pause", "snapshots", "fork", "timeout")),
        ("POST", "/v2/sandboxes/x/connect"),
        ("POST", "/sandboxes/x/refreshes"),
        ("PUT", "/sandboxes/x/network"),
        ("DELETE", "/templates/x"),
        ("PATCH", "/v2/templates/x"),
        ("GET", "/templates/aliases/x"),
        ("POST", "/templates/tags"),
        ("DELETE", "/templates/tags"),
        ("GET", "/templates/x/tags"),
        ("POST", "/v3/templates"),
        ("POST", "/v2/templates/x/builds/x"),
        ("GET", "/templates/x/files/x"),
        ("GET", "/volumes"),
        ("DELETE", "/volumes/x"),
        ("GET", "/secrets/x"),
        ("GET", "/firkin/v1/info"),
        ("GET", "/firkin/v1/sandboxes/x/explain"),
        ("GET", "/firkin/v1/templates"),
    ],
)
def test_a_call_without_fields_refuses_every_one(client: RawClient, method: str, path: str) -> None:
    answer = client.api(method, f"{path}?memory=false")
    assert (answer.status_code, answer.json()["message"]) == (
        400,
        "unknown query field 'memory'; allowed here: none",
    )


def test_a_pause_that_is_refused_pauses_nothing(client: RawClient) -> None:
    path = f"/sandboxes/{client.sandbox['sandboxID']}"
    assert client.api("POST", f"{path}/pause?memory=false").status_code == 400
    assert client.api("GET", path).json()["state"] == "running"


def test_a_field_that_comes_twice_is_refused_unless_it_may(client: RawClient) -> None:
    answer = client.api("GET", "/v2/sandboxes?metadata=a%3D1&metadata=b%3D2")
    assert (answer.status_code, answer.json()["message"]) == (
        400,
        "the query field 'metadata' comes twice; give it once",
    )
    kinds = "types=sandbox.lifecycle.created&types=sandbox.lifecycle.killed"
    assert client.api("GET", f"/events/sandboxes?{kinds}").status_code == 200


@pytest.mark.parametrize(
    "query",
    [
        "/builds/{build}/logs?direction=bogus",
        "/builds/{build}/logs?source=bogus",
        "/builds/{build}/logs?level=bogus",
        "/tags/groups?sort=bogus",
        "/tags/groups?assignmentLimit=x",
        "/tags/default/assignments?limit=abc",
        "/tags/default/assignments?cursor=zz",
        "?limit=junk",
        "?nextToken=%FF",
    ],
)
def test_a_field_with_a_value_that_it_cannot_have_is_refused(client: RawClient, template: str, query: str) -> None:
    build = client.api("GET", f"/templates/{template}").json()["builds"][0]["buildID"]
    answer = client.api("GET", f"/templates/{template}{query.format(build=build)}")
    assert answer.status_code == 400, answer.text
    assert _REFUSED not in answer.text


def test_builds_come_in_pages(client: RawClient, template: str) -> None:
    whole = [build["buildID"] for build in client.api("GET", f"/templates/{template}").json()["builds"]]
    paged, token = [], ""
    while True:
        answer = client.api("GET", f"/templates/{template}", params={"limit": "2", "nextToken": token})
        paged += [build["buildID"] for build in answer.json()["builds"]]
        token = answer.headers.get("x-next-token", "")
        if not token:
            break
    assert paged == whole
    assert len(whole) == 3


def test_templates_come_in_pages_to_who_asks_for_version_2(client: RawClient, template: str) -> None:
    assert client.api("POST", "/v3/templates", {"name": "queried-too"}).status_code == 202
    whole = {row["templateID"] for row in client.api("GET", "/templates").json()}
    paged: list[str] = []
    params = {"limit": "1"}
    while True:
        answer = client.api("GET", "/v2/templates", params=params)
        assert len(answer.json()) == 1
        paged += [row["templateID"] for row in answer.json()]
        if "x-next-token" not in answer.headers:
            break
        params["nextToken"] = answer.headers["x-next-token"]
    assert set(paged) == whole
    assert len(paged) == len(whole) == 3


@pytest.mark.parametrize("path", ["/templates", "/v2/templates"])
def test_the_templates_of_another_team_are_refused(client: RawClient, path: str) -> None:
    answer = client.api("GET", path, params={"teamID": "alice"}, key=BOB)
    assert (answer.status_code, "not that of the team 'alice'" in answer.json()["message"]) == (400, True)
    assert client.api("GET", path, params={"teamID": "alice"}).status_code == 200
