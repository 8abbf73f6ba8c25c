"""A tenant's quota holds for whatever makes a sandbox run."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from .conftest import BOB, RunningServer

WAKES = {"autoPause": True, "autoResume": {"enabled": True}}


@pytest.fixture
def bob(server: RunningServer) -> httpx.Client:
    return httpx.Client(base_url=server.url, headers={"X-API-Key": BOB}, timeout=20)


def _made(bob: httpx.Client) -> str:
    answer = bob.post("/v2/sandboxes", json={"templateID": "base", **WAKES})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["sandboxID"])


def _knock(bob: httpx.Client, sandbox_id: str) -> int:
    """A request to a port that is public, so that it wakes the sandbox; 502 because nothing listens there."""
    headers = {"E2b-Sandbox-Id": sandbox_id, "E2b-Sandbox-Port": "8000"}
    return bob.get("/", headers=headers).status_code


def _running(bob: httpx.Client) -> int:
    return len(bob.get("/v2/sandboxes", params={"state": "running"}).json())


@pytest.mark.thorough
def test_creates_forks_resumptions_and_traffic_share_one_quota_of_two(bob: httpx.Client) -> None:
    ids: list[str] = []
    try:
        for _ in range(4):  # paused ones do not count
            ids.append(_made(bob))
            assert bob.post(f"/sandboxes/{ids[-1]}/pause", json={}).status_code == 204
        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(lambda at: _knock(bob, ids[at % 4]), range(40)))
        assert set(answers) == {502, 429}
        assert _running(bob) == 2
        awake = [each["sandboxID"] for each in bob.get("/v2/sandboxes", params={"state": "running"}).json()]
        asleep = next(each for each in ids if each not in awake)
        assert bob.post(f"/v2/sandboxes/{asleep}/connect", json={}).status_code == 429
        assert bob.post(f"/sandboxes/{awake[0]}/fork", json={}).status_code == 429
        assert bob.post("/v2/sandboxes", json={"templateID": "base"}).status_code == 429
    finally:
        for sandbox_id in ids:
            bob.delete(f"/sandboxes/{sandbox_id}")
        bob.close()


@pytest.mark.thorough
def test_those_paused_with_their_memory_have_a_quota_of_their_own(bob: httpx.Client) -> None:
    ids: list[str] = []
    try:
        for _ in range(4):  # of this server
            ids.append(_made(bob))
            assert bob.post(f"/sandboxes/{ids[-1]}/pause", json={}).status_code == 204
        ids.append(_made(bob))
        refused = bob.post(f"/sandboxes/{ids[-1]}/pause", json={})
        assert (refused.status_code, refused.json()["reason"]) == (429, "quota")
        assert refused.json()["message"].endswith("; kill some of them, or pause without memory")
        assert _running(bob) == 1
        assert bob.post(f"/sandboxes/{ids[-1]}/pause", json={"memory": False}).status_code == 204
    finally:
        for sandbox_id in ids:
            bob.delete(f"/sandboxes/{sandbox_id}")
        bob.close()


@pytest.mark.thorough
def test_many_who_knock_at_once_wake_it_once(bob: httpx.Client) -> None:
    sandbox_id, other = _made(bob), _made(bob)
    try:
        assert bob.post(f"/sandboxes/{sandbox_id}/pause", json={}).status_code == 204
        with ThreadPoolExecutor(16) as pool:
            assert set(pool.map(lambda _: _knock(bob, sandbox_id), range(32))) == {502}
    finally:
        for each in (sandbox_id, other):
            bob.delete(f"/sandboxes/{each}")
        bob.close()
