"""Metrics over a sandbox's life and its logs, as a plain HTTP client and the official SDK see them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from e2b import Sandbox

from .conftest import BOB, RunningServer
from .raw import RawClient, raw_client


@pytest.fixture
def client(server: RunningServer) -> Iterator[RawClient]:
    with raw_client(server) as made:
        yield made


def _of(client: RawClient, what: str) -> str:
    return f"/sandboxes/{client.sandbox['sandboxID']}/{what}"


def test_there_is_a_sample_from_the_first_moment_on(client: RawClient) -> None:
    (first,) = client.api("GET", _of(client, "metrics")).json()
    assert {"timestamp", "timestampUnix", "cpuCount", "cpuUsedPct", "memUsed", "memTotal", "memCache"} <= set(first)
    assert {"diskUsed", "diskTotal"} <= set(first)
    assert abs(first["timestampUnix"] - time.time()) < 30
    assert 0 < first["memUsed"] < first["memTotal"]


def test_a_range_includes_both_its_seconds(client: RawClient) -> None:
    (first,) = client.api("GET", _of(client, "metrics")).json()
    at = first["timestampUnix"]

    def between(start: int, end: int) -> list[int]:
        found = client.api("GET", _of(client, "metrics"), params={"start": start, "end": end}).json()
        return [one["timestampUnix"] for one in found]

    assert at in between(at, at)
    assert at in between(at - 10, at + 10)
    assert at not in between(at + 1, at + 100)
    assert between(at - 100, at - 50) == []
    refused = client.api("GET", _of(client, "metrics"), params={"start": at, "end": at - 1})
    assert (refused.status_code, refused.json()["message"]) == (400, "end must not be before start")


def test_the_samples_stay_while_it_is_paused(client: RawClient) -> None:
    before = client.api("GET", _of(client, "metrics")).json()
    assert client.api("POST", _of(client, "pause"), {}).status_code == 204
    found = client.api("GET", _of(client, "metrics")).json()
    assert found[: len(before)] == before
    together = client.api("GET", "/sandboxes/metrics", params={"sandbox_ids": client.sandbox["sandboxID"]}).json()
    assert together["sandboxes"][client.sandbox["sandboxID"]] == found[-1]


def test_the_sdk_reads_ranges(server: RunningServer) -> None:
    with Sandbox.create(**server.sdk()) as sandbox:
        (first,) = sandbox.get_metrics()
        assert first.mem_used > 0
        assert sandbox.get_metrics(start=datetime.now(UTC) + timedelta(minutes=1)) == []
        assert sandbox.get_metrics(end=datetime.now(UTC) - timedelta(minutes=1)) == []


def _logs(client: RawClient, **query: object) -> list[dict[str, str]]:
    path = f"/v2/sandboxes/{client.sandbox['sandboxID']}/logs"
    answer = client.api("GET", path, params={name: str(value) for name, value in query.items()})
    assert answer.status_code == 200, answer.text
    found: list[dict[str, str]] = answer.json()["logs"]
    return found


def test_lines_are_what_the_command_line_tool_reads(client: RawClient) -> None:
    client.run("exit 3")
    answer = client.api("GET", _of(client, "logs")).json()
    lines = [json.loads(one["line"]) for one in answer["logs"]]
    assert len(lines) == len(answer["logEntries"]) >= 4
    assert {line["level"] for line in lines} <= {"debug", "info", "warn", "error"}
    assert {line["logger"] for line in lines} == {"system", "process"}
    ended = [line for line in lines if line["message"].endswith(": exit status 3")]
    assert [(line["level"], line["logger"]) for line in ended] == [("info", "process")]
    assert all(isinstance(value, str) for entry in answer["logEntries"] for value in entry["fields"].values())


def test_pages_follow_each_other_in_both_directions(client: RawClient) -> None:
    for _ in range(5):
        client.run("true")
    everything = _logs(client)
    assert everything == sorted(everything, key=lambda entry: entry["timestamp"])
    assert _logs(client, direction="backward") == list(reversed(everything))
    assert _logs(client, limit=3) == everything[:3]
    assert _logs(client, limit=3, direction="backward") == list(reversed(everything[-3:]))
    middle = everything[len(everything) // 2]
    cursor = int(datetime.fromisoformat(middle["timestamp"]).timestamp() * 1000)
    forward, backward = _logs(client, cursor=cursor), _logs(client, cursor=cursor, direction="backward")
    assert middle in forward
    assert middle in backward
    assert {entry["message"] for entry in forward} | {entry["message"] for entry in backward} == {
        entry["message"] for entry in everything
    }


def test_levels_and_words_choose_before_the_limit_cuts(client: RawClient) -> None:
    client.run("exit 7")
    for _ in range(3):
        client.run("true")
    assert {entry["level"] for entry in _logs(client, level="info")} == {"info"}
    (found,) = _logs(client, search="exit status 7", limit=1)
    assert found["message"].endswith("exit status 7")
    assert _logs(client, search="nobody says this") == []


@pytest.mark.thorough
@pytest.mark.parametrize("query", [{"limit": 0}, {"direction": "up"}, {"level": "loud"}, {"cursor": "x"}, {"what": 1}])
def test_a_page_that_cannot_be_is_refused(client: RawClient, query: dict[str, object]) -> None:
    path = f"/v2/sandboxes/{client.sandbox['sandboxID']}/logs"
    answer = client.api("GET", path, params={name: str(value) for name, value in query.items()})
    assert answer.status_code == 400


@pytest.mark.thorough
def test_logs_are_there_after_the_end_for_their_owner_alone(server: RunningServer) -> None:
    with raw_client(server) as client:
        client.run("exit 5")
        assert client.api("DELETE", f"/sandboxes/{client.sandbox['sandboxID']}").status_code == 204
        assert any("exit status 5" in entry["message"] for entry in _logs(client))
        v1 = client.api("GET", _of(client, "logs")).json()["logEntries"]
        assert v1[-1]["message"].startswith("deleted: ")
        assert client.api("GET", _of(client, "logs"), key=BOB).status_code == 404
        assert client.api("GET", _of(client, "metrics")).status_code == 404
