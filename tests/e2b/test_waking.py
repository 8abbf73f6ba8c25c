"""Who may wake a paused sandbox, and for how long it then lives."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from e2b.sandbox.signature import get_signature

from e2b import Sandbox

from .conftest import ALICE, RunningServer

WAKES = {"autoPause": True, "autoResume": {"enabled": True}}
TRAFFIC = "e2b-traffic-access-token"
PATH = "/etc/hostname"
LIST = "/process.Process/List"

pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning")


class Sleeper:
    """A sandbox that wakes on traffic, and requests to it that bring only what they are given."""

    def __init__(self, server: RunningServer, **fields: Any) -> None:
        self._http = httpx.Client(base_url=server.url, timeout=20)
        self._key = {"X-API-Key": ALICE}
        body = {"templateID": "base", **WAKES, **fields}
        version = "/v2/sandboxes" if "secure" not in fields else "/sandboxes"
        self.made = self._http.post(version, json=body, headers=self._key).json()
        self.id = self.made["sandboxID"]
        self.path = f"/sandboxes/{self.id}"

    def pause(self) -> None:
        assert self._http.post(f"{self.path}/pause", json={}, headers=self._key).status_code == 204

    @property
    def info(self) -> dict[str, Any]:
        return dict(self._http.get(self.path, headers=self._key).json())

    def ask(self, method: str, path: str, *, port: int = 49983, **headers: str) -> httpx.Response:
        named = {"E2b-Sandbox-Id": self.id, "E2b-Sandbox-Port": str(port)} if port else {}
        more = {name.replace("_", "-"): value for name, value in headers.items()}
        content = b"{}" if method == "POST" else None
        kind = {"content-type": "application/json"} if content else {}
        return self._http.request(method, path, content=content, headers={**named, **kind, **more})

    def close(self) -> None:
        self._http.delete(self.path, headers=self._key)
        self._http.close()


@pytest.fixture
def sleeper(server: RunningServer) -> Iterator[Sleeper]:
    """Secure, with ports that are not public."""
    made = Sleeper(server, network={"allowPublicTraffic": False})
    made.pause()
    yield made
    made.close()


def _link(sleeper: Sleeper, expires_in_s: int = 60) -> str:
    signed = get_signature(PATH, "read", "", sleeper.made["envdAccessToken"], expires_in_s)
    quoted = httpx.QueryParams(
        {"path": PATH, "signature": signed["signature"], "signature_expiration": signed["expiration"]}
    )
    return f"/files?{quoted}"


def _refused(sleeper: Sleeper, answer: httpx.Response) -> None:
    message = "This sandbox can't be resumed with the credentials provided. Check your access token and try again."
    assert answer.status_code == 403, answer.text
    assert answer.json() == {"sandboxId": sleeper.id, "message": message, "code": 403}
    assert answer.headers["should-retry"] == "false"
    assert sleeper.info["state"] == "paused"


@pytest.mark.thorough
@pytest.mark.parametrize("token", [None, "wrong"])
@pytest.mark.parametrize(
    ("method", "path", "port", "header"),
    [
        ("GET", "/health", 49983, "X-Access-Token"),
        ("GET", "/envs", 49983, "X-Access-Token"),
        ("GET", "/nothing", 49983, "X-Access-Token"),
        ("GET", f"/files?path={PATH}", 49983, "X-Access-Token"),
        ("GET", f"/files?path={PATH}&signature=v1_x&signature_expiration=soon", 49983, "X-Access-Token"),
        ("POST", LIST, 49983, "X-Access-Token"),
        ("GET", "/", 8000, TRAFFIC),
    ],
)
def test_a_stranger_wakes_nothing(
    sleeper: Sleeper, method: str, path: str, port: int, header: str, token: str | None
) -> None:
    _refused(sleeper, sleeper.ask(method, path, port=port, **({} if token is None else {header: token})))


def test_a_link_that_is_expired_wakes_nothing(sleeper: Sleeper) -> None:
    _refused(sleeper, sleeper.ask("GET", _link(sleeper, -10)))
    _refused(sleeper, sleeper.ask("GET", _link(sleeper, -10), port=0))


def test_a_browser_is_shown_a_page(sleeper: Sleeper) -> None:
    answer = sleeper.ask("GET", "/", port=8000, user_agent="Mozilla/5.0", accept="text/html")
    assert answer.status_code == 403
    assert "<h1>This port is not public</h1>" in answer.text
    assert "resumed with the credentials" in answer.text
    assert sleeper.info["state"] == "paused"


@pytest.mark.thorough
@pytest.mark.parametrize("port", [49983, 0])
def test_a_signed_link_wakes(sleeper: Sleeper, port: int) -> None:
    assert sleeper.ask("GET", _link(sleeper), port=port).status_code == 200
    assert sleeper.info["state"] == "running"


@pytest.mark.thorough
@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/health", 204), ("POST", LIST, 200)])
def test_the_token_wakes(sleeper: Sleeper, method: str, path: str, status: int) -> None:
    token = sleeper.made["envdAccessToken"]
    assert sleeper.ask(method, path, X_Access_Token=token).status_code == status
    assert sleeper.info["state"] == "running"


def test_the_token_of_the_ports_wakes(sleeper: Sleeper) -> None:
    answer = sleeper.ask("GET", "/", port=8000, **{TRAFFIC: sleeper.made["trafficAccessToken"]})
    assert (answer.status_code, answer.json()["message"]) == (502, "The sandbox is running but port is not open")
    assert sleeper.info["state"] == "running"


def test_what_asks_for_nothing_is_woken_by_everybody(server: RunningServer) -> None:
    made = Sleeper(server, secure=False)
    try:
        for port, path in ((8000, "/"), (49983, "/health"), (49983, "/envs")):
            made.pause()
            assert made.ask("GET", path, port=port).status_code in (502, 204, 200)
            assert made.info["state"] == "running"
    finally:
        made.close()


def test_the_sdk_wakes_by_asking_whether_it_runs(server: RunningServer) -> None:
    lifecycle = {"on_timeout": "pause", "auto_resume": True}
    sandbox = Sandbox.create("base", lifecycle=lifecycle, **server.sdk())
    try:
        sandbox.pause()
        assert sandbox.is_running()
        assert sandbox.get_info().state.value == "running"
    finally:
        sandbox.kill()


@pytest.mark.thorough
@pytest.mark.parametrize(("asked_s", "lives_s"), [(30, 300), (900, 900)])
def test_who_was_woken_lives_for_five_minutes_at_least(server: RunningServer, asked_s: int, lives_s: int) -> None:
    made = Sleeper(server, timeout=asked_s)
    try:
        made.pause()
        before = datetime.now(UTC)
        assert made.ask("GET", "/", port=8000).status_code == 502
        after = datetime.now(UTC)
        ends = datetime.fromisoformat(made.info["endAt"])
        assert (ends - after).total_seconds() - 1 <= lives_s <= (ends - before).total_seconds() + 1
    finally:
        made.close()


@pytest.mark.thorough
def test_requests_that_meet_a_pause_are_served_after_it(server: RunningServer) -> None:
    sleeper = Sleeper(server, secure=False)
    over = threading.Event()

    def pausing() -> None:
        with httpx.Client(base_url=server.url, timeout=20) as http:
            while not over.is_set():
                http.post(f"{sleeper.path}/pause", json={}, headers={"X-API-Key": ALICE})

    def asking() -> set[int]:
        with httpx.Client(base_url=server.url, timeout=20) as http:
            headers = {"E2b-Sandbox-Id": sleeper.id, "E2b-Sandbox-Port": "49983", "content-type": "application/json"}
            return {http.post(LIST, content=b"{}", headers=headers).status_code for _ in range(300)}

    with ThreadPoolExecutor(4) as threads:
        pauser = threads.submit(pausing)
        seen = [threads.submit(asking) for _ in range(3)]
        answered = set[int]().union(*(one.result() for one in seen))
        over.set()
        pauser.result()
    sleeper.close()
    assert answered <= {200, 409}
