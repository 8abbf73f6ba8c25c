"""More clients than there is room for: each is served in its turn or told why not, and nobody waits in vain."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from firkin.drivers.memory import MemoryDriver, MemoryRootPreparer
from firkin.e2b.operators import operator_token
from firkin.engine.backend import LocalBackend
from firkin.law.policies import Capacity, DeadlinePolicy, Policies
from firkin.law.pressure import BackpressurePolicy
from firkin.law.resources import GIB

from .conftest import ALICE, SECRET, RunningServer, in_a_thread

LIMIT, WAIT_S = 10, 1.0
POLICIES = Policies(
    capacity=Capacity(
        max_sandboxes=LIMIT, max_memory_bytes=64 * GIB, max_vcpus=32, memory_floor_bytes=0, disk_floor_bytes=0
    ),
    deadlines=DeadlinePolicy(max_timeout_s=None),
    backpressure=BackpressurePolicy(max_pending=40, max_wait_s=WAIT_S),
)
WAKES = {"autoPause": True, "autoResume": {"enabled": True}}


class Small(LocalBackend):
    """A backend with little room, whatever the server starts it with."""

    async def start(self, policies: Policies) -> None:
        await super().start(replace(POLICIES, deadlines=policies.deadlines))


@pytest.fixture
def small(tmp_path: Path) -> Iterator[RunningServer]:
    def make() -> LocalBackend:
        return Small(driver=MemoryDriver(), preparer=MemoryRootPreparer(), state_dir=tmp_path / "state")

    with in_a_thread(make) as running:
        yield running


@pytest.fixture
def alice(small: RunningServer) -> Iterator[httpx.Client]:
    limits = httpx.Limits(max_connections=200)
    with httpx.Client(base_url=small.url, headers={"X-API-Key": ALICE}, timeout=20, limits=limits) as client:
        yield client


def _create(client: httpx.Client, **more: Any) -> httpx.Response:
    return client.post("/v2/sandboxes", json={"templateID": "base", **more})


def _running(client: httpx.Client) -> list[str]:
    return [each["sandboxID"] for each in client.get("/v2/sandboxes", params={"state": "running"}).json()]


def _line(server: RunningServer) -> int:
    assert server.backend is not None
    return len(server.backend._started().line)


def _eventually(holds: Any, within_s: float = 5.0) -> None:
    until = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.005)


@pytest.mark.thorough
def test_a_hundred_creates_at_a_limit_of_ten_make_ten_and_tell_the_rest(alice: httpx.Client) -> None:
    with ThreadPoolExecutor(100) as pool:
        answers = list(pool.map(lambda _: _create(alice), range(100)))
    assert Counter(answer.status_code for answer in answers) == {201: LIMIT, 503: 90}
    assert len(_running(alice)) == LIMIT
    refused = [answer for answer in answers if answer.status_code == 503]
    reasons = Counter(answer.json()["reason"] for answer in refused)
    assert set(reasons) <= {"deadline_passed", "queue_full"}
    assert reasons["deadline_passed"] >= 40  # more where the clients themselves took longer than the wait
    for answer in refused:
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.headers["should-retry"] == "true"
        assert answer.json()["limit"] == {"name": "sandboxes", "value": LIMIT, "requested": 1, "available": 0}
    queued = [answer.json()["queue"] for answer in refused if "queue" in answer.json()]
    assert sorted(each["position"] for each in queued)[0] == 1
    assert all(each["waitedMs"] >= WAIT_S * 900 for each in queued)


@pytest.mark.thorough
def test_who_waits_is_served_as_soon_as_a_sandbox_ends(alice: httpx.Client, small: RunningServer) -> None:
    made = [_create(alice).json()["sandboxID"] for _ in range(LIMIT)]
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(_create, alice)
        _eventually(lambda: _line(small) == 1)
        assert alice.delete(f"/sandboxes/{made[0]}").status_code == 204
        assert waiting.result(5).status_code == 201


@pytest.mark.thorough
def test_a_client_that_gives_up_leaves_the_line_and_gets_no_sandbox(alice: httpx.Client, small: RunningServer) -> None:
    made = [_create(alice).json()["sandboxID"] for _ in range(LIMIT)]
    hasty = httpx.Client(base_url=small.url, headers={"X-API-Key": ALICE}, timeout=0.2)
    with hasty, pytest.raises(httpx.ReadTimeout):
        _create(hasty)
    _eventually(lambda: _line(small) == 0, 0.5)
    assert alice.delete(f"/sandboxes/{made[0]}").status_code == 204
    time.sleep(0.1)
    assert len(_running(alice)) == LIMIT - 1


@pytest.mark.thorough
def test_what_is_larger_than_the_whole_limit_is_refused_at_once(alice: httpx.Client, small: RunningServer) -> None:
    assert small.backend is not None
    admission = small.backend._started().admission
    admission.capacity = replace(admission.capacity, max_memory_bytes=GIB // 2)
    began = time.monotonic()
    answer = _create(alice)
    assert time.monotonic() - began < 0.5
    assert (answer.status_code, answer.json()["reason"]) == (400, "oversized")
    assert answer.json()["limit"]["value"] == GIB // 2
    assert (answer.headers["should-retry"], "retry-after" in answer.headers) == ("false", False)


@pytest.mark.thorough
def test_a_raised_limit_serves_those_who_wait(alice: httpx.Client, small: RunningServer) -> None:
    for _ in range(LIMIT):
        _create(alice)
    assert small.backend is not None
    assert small.loop is not None
    admission = small.backend._started().admission
    with ThreadPoolExecutor(5) as pool:
        waiting = [pool.submit(_create, alice) for _ in range(5)]
        _eventually(lambda: _line(small) == 5)
        raised = replace(admission.capacity, max_sandboxes=LIMIT + 5)
        small.loop.call_soon_threadsafe(setattr, admission, "capacity", raised)
        assert {each.result(5).status_code for each in waiting} == {201}


@pytest.mark.thorough
def test_a_paused_sandbox_is_resumed_at_the_limit_when_another_ends(alice: httpx.Client, small: RunningServer) -> None:
    paused = _create(alice).json()["sandboxID"]
    assert alice.post(f"/sandboxes/{paused}/pause", json={}).status_code == 204
    made = [_create(alice).json()["sandboxID"] for _ in range(LIMIT)]
    answer = alice.post(f"/v2/sandboxes/{paused}/connect", json={})
    assert (answer.status_code, answer.json()["reason"]) == (503, "deadline_passed")
    assert alice.get(f"/sandboxes/{paused}").json()["state"] == "paused"
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(alice.post, f"/v2/sandboxes/{paused}/connect", json={})
        _eventually(lambda: _line(small) == 1)
        assert alice.delete(f"/sandboxes/{made[0]}").status_code == 204
        assert waiting.result(5).status_code == 201


@pytest.mark.thorough
def test_a_sandbox_whose_resumption_waits_is_killed_without_a_wait(alice: httpx.Client, small: RunningServer) -> None:
    paused = _create(alice).json()["sandboxID"]
    assert alice.post(f"/sandboxes/{paused}/pause", json={}).status_code == 204
    for _ in range(LIMIT):
        _create(alice)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(alice.post, f"/v2/sandboxes/{paused}/connect", json={})
        _eventually(lambda: _line(small) == 1)
        began = time.monotonic()
        assert alice.delete(f"/sandboxes/{paused}").status_code == 204
        assert time.monotonic() - began < WAIT_S / 2
        assert waiting.result(5).status_code in (404, 503)
    assert _line(small) == 0


@pytest.mark.thorough
def test_traffic_that_finds_no_room_to_wake_a_sandbox_is_told_together(
    alice: httpx.Client, small: RunningServer
) -> None:
    asleep = _create(alice, **WAKES).json()["sandboxID"]
    assert alice.post(f"/sandboxes/{asleep}/pause", json={}).status_code == 204
    for _ in range(LIMIT):
        _create(alice)

    def knock(_: int) -> httpx.Response:
        return alice.get("/", headers={"E2b-Sandbox-Id": asleep, "E2b-Sandbox-Port": "8000"})

    began = time.monotonic()
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(knock, range(20)))
    assert {answer.status_code for answer in answers} == {503}
    assert time.monotonic() - began < 3 * WAIT_S
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in answers)


@pytest.mark.thorough
def test_the_node_says_how_it_is_and_an_operator_changes_its_limits(alice: httpx.Client, small: RunningServer) -> None:
    for _ in range(LIMIT):
        _create(alice)
    status = alice.get("/firkin/v1/node").json()
    assert status["state"] in ("nominal", "watch")
    assert status["limits"][0] == {"name": "sandboxes", "limit": LIMIT, "active": LIMIT, "warm": 0}
    assert status["queue"]["admittedAtOnce"] == LIMIT
    assert status["memory"]["free"] > 0
    raised = {"maxSandboxes": LIMIT + 1}
    assert alice.patch("/firkin/v1/node/limits", json=raised).status_code == 403
    operator = {"X-Firkin-Operator": operator_token(SECRET)}
    for wrong in ({"maxSandboxes": -1}, {"maxSandboxes": "many"}, {"most": 1}):
        assert alice.patch("/firkin/v1/node/limits", json=wrong, headers=operator).status_code == 400
    answer = alice.patch("/firkin/v1/node/limits", json=raised, headers=operator)
    assert answer.json()["limits"][0]["limit"] == LIMIT + 1
    assert _create(alice).status_code == 201
    assert alice.patch("/firkin/v1/node/limits", json={"maxSandboxes": None}, headers=operator).status_code == 200
    assert _create(alice).status_code == 201
