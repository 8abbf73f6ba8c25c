"""Lifecycle events as E2B lists them, the feed that misses nothing, and webhooks over HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from firkin.e2b.operators import OPERATOR_HEADER, operator_token
from firkin.law.lifecycle_events import EVENT_TYPES

from .conftest import ALICE, BOB, SECRET, RunningServer
from .raw import RawClient, raw_client

OPERATOR = {OPERATOR_HEADER: operator_token(SECRET)}
TYPES = [f"sandbox.lifecycle.{name}" for name in ("created", "paused", "resumed", "killed")]


@pytest.fixture(scope="module")
def lived(server: RunningServer) -> Iterator[RawClient]:
    """A client whose sandbox was paused, resumed and killed."""
    with raw_client(server, metadata={"team": "blue"}) as client:
        path = f"/sandboxes/{client.sandbox['sandboxID']}"
        assert client.api("POST", f"{path}/pause", {}).status_code == 204
        assert client.api("POST", f"{path}/resume", {}).status_code == 201
        assert client.api("DELETE", path).status_code == 204
        yield client


def _events(client: RawClient, path: str = "", *, key: str = ALICE, **query: Any) -> list[dict[str, Any]]:
    answer = client.api("GET", f"/events/sandboxes{path}", key=key, params=query)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()
    return found


def _own(client: RawClient) -> str:
    return f"/{client.sandbox['sandboxID']}"


def test_the_events_of_a_sandbox_are_listed_newest_first(lived: RawClient) -> None:
    found = _events(lived, _own(lived))
    assert [event["type"] for event in found] == list(reversed(TYPES))
    assert [event["type"] for event in _events(lived, _own(lived), orderAsc="true")] == TYPES
    killed = found[0]
    assert killed["version"] == "v2"
    assert killed["event_category"] == killed["eventCategory"] == "lifecycle"
    assert killed["event_label"] == "kill"
    assert killed["sandbox_team_id"] == "alice"
    assert killed["sandbox_template_id"] == "base"
    assert killed["event_data"]["sandbox_metadata"] == {"team": "blue"}
    assert killed["event_data"]["actor"] == "key alice"
    assert set(killed["event_data"]["execution"]) == {"started_at", "vcpu_count", "memory_mb", "execution_time"}
    assert len({event["id"] for event in found}) == 4
    assert killed["timestamp"].endswith("Z")


def test_events_come_in_pages_and_by_type(lived: RawClient) -> None:
    everything = _events(lived, _own(lived))
    assert _events(lived, _own(lived), limit=2, offset=1) == everything[1:3]
    two = _events(lived, _own(lived), types=[TYPES[0], TYPES[3]])
    assert [event["type"] for event in two] == [TYPES[3], TYPES[0]]
    assert [event["type"] for event in _events(lived, _own(lived), types=TYPES[2])] == [TYPES[2]]
    assert _events(lived, _own(lived), types="sandbox.lifecycle.updated") == []
    assert len(_events(lived, limit=100)) >= 4


def test_each_tenant_sees_its_own_events_alone(lived: RawClient) -> None:
    assert _events(lived, _own(lived), key=BOB) == []
    assert lived.sandbox["sandboxID"] not in {event["sandbox_id"] for event in _events(lived, key=BOB, limit=100)}
    assert _events(lived, "/UNKNOWN") == []


@pytest.mark.parametrize(
    "query", [{"limit": 0}, {"limit": 101}, {"offset": -1}, {"orderAsc": "up"}, {"types": "nope"}, {"what": 1}]
)
def test_a_list_of_events_that_cannot_be_is_refused(lived: RawClient, query: dict[str, Any]) -> None:
    answer = lived.api("GET", "/events/sandboxes", params=query)
    assert answer.status_code == 400
    assert len(answer.json()["message"]) > 10


class Feed:
    """Lines of ``/firkin/v1/events`` as they come."""

    def __init__(self, answer: httpx.Response) -> None:
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/x-ndjson"
        self._lines = answer.iter_lines()

    def next(self) -> dict[str, Any]:
        line: dict[str, Any] = json.loads(next(self._lines))
        return line

    def of(self, sandbox_id: str, count: int) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        while len(found) < count:
            line = self.next()
            if line.get("sandbox_id") == sandbox_id:
                found.append(line)
        return found


def _feed(client: RawClient, *, headers: dict[str, str] | None = None, key: str = ALICE, **query: Any) -> Any:
    given = {"X-API-Key": key, **(headers or {})}
    return client.http.stream("GET", "/firkin/v1/events", headers=given, params=query)


def test_a_feed_tells_what_was_missed_and_what_comes(server: RunningServer, lived: RawClient) -> None:
    sandbox_id = lived.sandbox["sandboxID"]
    with _feed(lived, after=0, sandbox_id=sandbox_id) as answer:
        feed = Feed(answer)
        assert feed.next() == {"after": 0}
        past = feed.of(sandbox_id, 6)
    assert [line["became"] for line in past] == ["creating", "running", "paused", "running", "stopped", "deleted"]
    assert [line["type"] for line in past if line["type"]] == TYPES
    assert past[-1]["owner"] == "alice"
    with _feed(lived, after=past[2]["number"], sandbox_id=sandbox_id) as answer:
        assert Feed(answer).of(sandbox_id, 3) == past[3:]
    with _feed(lived) as answer:
        feed = Feed(answer)
        begun = feed.next()["after"]
        assert begun >= past[-1]["number"]
        with raw_client(server) as other:
            new = feed.of(other.sandbox["sandboxID"], 2)
    assert [line["became"] for line in new] == ["creating", "running"]
    assert all(line["number"] > begun for line in new)


def test_a_feed_shows_tenants_their_own_and_the_operator_all(server: RunningServer, lived: RawClient) -> None:
    sandbox_id = lived.sandbox["sandboxID"]
    with _feed(lived, after=0, key=BOB, headers=OPERATOR) as answer:
        assert Feed(answer).of(sandbox_id, 1)
    created = lived.api("POST", "/v2/sandboxes", {"templateID": "base"}, key=BOB).json()["sandboxID"]
    try:
        with _feed(lived, after=0, key=BOB) as answer:
            feed = Feed(answer)
            assert feed.next() == {"after": 0}
            assert {feed.next()["owner"] for _ in range(2)} == {"bob"}
    finally:
        lived.api("DELETE", f"/sandboxes/{created}", key=BOB)


def test_pruning_templates_is_the_operators(lived: RawClient) -> None:
    assert lived.api("POST", "/firkin/v1/templates/prune").status_code == 403


def test_webhooks_are_the_operators(lived: RawClient) -> None:
    body = {"url": "http://127.0.0.1:1/hook", "events": [TYPES[3]]}
    refused = lived.api("POST", "/firkin/v1/webhooks", body)
    assert refused.status_code == 403
    assert "only the operator" in refused.json()["message"]
    assert lived.api("GET", "/firkin/v1/webhooks").status_code == 403
    told = lived.api("POST", "/events/webhooks", body)
    assert (told.status_code, "firkin webhook add" in told.json()["message"]) == (400, True)


def test_a_webhook_is_added_shown_tested_and_removed(lived: RawClient) -> None:
    def call(method: str, path: str = "", body: object = None) -> httpx.Response:
        return lived.api(method, f"/firkin/v1/webhooks{path}", body, headers=OPERATOR)

    given = call("POST", "", {"url": "http://127.0.0.1:1/hook", "secret": "mine", "events": [TYPES[3]]})
    made = call("POST", "", {"url": "http://127.0.0.1:1/other"})
    assert (given.status_code, made.status_code) == (201, 201)
    assert "secret" not in given.json()
    assert len(made.json()["secret"]) > 30
    shown = call("GET")
    assert made.json()["secret"] not in shown.text
    assert "mine" not in shown.text
    assert [one["events"] for one in shown.json()] == [[TYPES[3]], list(EVENT_TYPES)]
    tested = call("POST", f"/{given.json()['id']}/test").json()
    assert (tested["delivered"], "refused" in tested["failure"]) == (False, True)
    for one in (given, made):
        assert call("DELETE", f"/{one.json()['id']}").status_code == 204
    assert call("GET").json() == []
    assert call("DELETE", f"/{given.json()['id']}").status_code == 404


@pytest.mark.parametrize(
    "body", [{}, {"url": "nowhere"}, {"url": "http://x/", "events": ["nope"]}, {"url": "http://x/", "what": 1}, b"{"]
)
def test_a_webhook_that_cannot_be_is_refused(lived: RawClient, body: object) -> None:
    answer = lived.api("POST", "/firkin/v1/webhooks", body, headers=OPERATOR)
    assert answer.status_code == 400
    assert len(answer.json()["message"]) > 10
