"""Network policies over the wire: the official SDK, Firkin's own route, the port proxy and the command line."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from e2b.exceptions import NotFoundException

from e2b import Sandbox, SandboxException
from firkin.cli.main import _run
from tests.e2b.conftest import ALICE, BOB, RunningServer, in_a_thread
from tests.namespaces.conftest import backend_at
from tests.namespaces.test_policy import OTHER, PRIVATE, PROBE, PUBLIC
from tests.namespaces.worlds import PORT, world


@pytest.fixture(scope="module", autouse=True)
def outside() -> Iterator[str]:
    with world() as name:
        yield name


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    state_dir = tmp_path_factory.mktemp("state")
    with in_a_thread(lambda: backend_at(state_dir)) as running:
        yield running


@pytest.fixture
def sandbox(server: RunningServer) -> Iterator[Sandbox]:
    made = Sandbox.create("base", network={"deny_out": [OTHER]}, **server.sdk())
    yield made
    made.kill()


def heard(sandbox: Sandbox, *addresses: str) -> set[str]:
    sandbox.files.write("/tmp/probe.py", PROBE.format(port=PORT, patience=0.4))
    return set(sandbox.commands.run(f"python3 /tmp/probe.py {' '.join(addresses)}").stdout.split())


def call(server: RunningServer, method: str, path: str, body: Any = None, key: str = ALICE) -> httpx.Response:
    return httpx.request(method, f"{server.url}{path}", json=body, headers={"X-API-Key": key}, timeout=20)


def test_a_policy_given_at_creation_is_enforced_and_shown(sandbox: Sandbox) -> None:
    assert heard(sandbox, PUBLIC, OTHER, PRIVATE) == {PUBLIC}
    network = sandbox.get_info().network
    assert network is not None
    assert network["deny_out"] == [OTHER]
    assert network["allow_public_traffic"] is True


def test_the_older_way_to_create_takes_a_policy_too(server: RunningServer) -> None:
    body = {"templateID": "base", "secure": True, "network": {"allowOut": [PRIVATE], "denyOut": ["0.0.0.0/0"]}}
    made = call(server, "POST", "/sandboxes", body)
    assert made.status_code == 201
    sandbox = Sandbox.connect(made.json()["sandboxID"], **server.sdk())
    assert heard(sandbox, PUBLIC, PRIVATE) == {PRIVATE}
    sandbox.kill()


def test_an_update_replaces_everything(sandbox: Sandbox) -> None:
    sandbox.update_network({"allow_out": [PRIVATE], "deny_out": ["0.0.0.0/0"]})
    assert heard(sandbox, PUBLIC, OTHER, PRIVATE) == {PRIVATE}
    info = sandbox.get_info().network
    assert info is not None
    assert (info["allow_out"], info["deny_out"]) == ([PRIVATE], ["0.0.0.0/0"])
    sandbox.update_network({})
    assert heard(sandbox, PUBLIC, OTHER, PRIVATE) == {PUBLIC, OTHER}
    assert "allow_out" not in (sandbox.get_info().network or {})


def test_without_internet_access_everything_is_denied_that_is_not_allowed(
    sandbox: Sandbox, server: RunningServer
) -> None:
    sandbox.update_network({"allow_internet_access": False, "allow_out": [OTHER]})
    assert heard(sandbox, PUBLIC, OTHER) == {OTHER}
    detail = call(server, "GET", f"/sandboxes/{sandbox.sandbox_id}").json()
    assert detail["allowInternetAccess"] is False
    assert detail["network"]["denyOut"] == ["0.0.0.0/0"]


def test_an_update_takes_at_most_50_ms(sandbox: Sandbox) -> None:
    took = []
    for number in range(11):
        began = time.perf_counter()
        sandbox.update_network({"deny_out": [f"9.9.{number}.0/24"], "allow_out": [PRIVATE]})
        took.append(time.perf_counter() - began)
    assert sorted(took)[5] < 0.05


def test_what_cannot_be_is_refused_and_changes_nothing(sandbox: Sandbox, server: RunningServer) -> None:
    path = f"/sandboxes/{sandbox.sandbox_id}/network"
    for body, says in [
        ({"denyOut": ["not-a-cidr"]}, "invalid denied CIDR not-a-cidr"),
        ({"allowOut": ["example.com"]}, "you must include 'ALL_TRAFFIC' in deny out"),
        ({"dnsServers": ["10.0.0.1"]}, "dns_servers that allow_out does not name"),
        ({"httpsPorts": [8443]}, "network.httpsPorts is not supported"),
        ({"rules": {"example.com": [{"transform": {"headers": {"a": "${e2b.secrets.x}"}}}]}}, "does not exist"),
        ({"allowPorts": [70000]}, "port 70000 is not"),
    ]:
        answer = call(server, "PUT", path, body)
        assert (answer.status_code, says in answer.json()["message"]) == (400, True), answer.text
    assert call(server, "PUT", path, {}, key=BOB).status_code == 404
    assert call(server, "GET", f"/firkin/v1{path}", key=BOB).status_code == 404
    assert heard(sandbox, PUBLIC, OTHER) == {PUBLIC}


def test_a_sandbox_that_is_gone_has_no_network(server: RunningServer) -> None:
    made = Sandbox.create("base", **server.sdk())
    made.kill()
    with pytest.raises((NotFoundException, SandboxException), match="not found"):
        made.update_network({})
    assert call(server, "GET", f"/firkin/v1/sandboxes/{made.sandbox_id}/network").status_code == 404


def test_only_the_ports_of_the_policy_are_reached_from_outside(server: RunningServer) -> None:
    body = {"templateID": "base", "timeout": 60, "network": {"allowPorts": [8000]}}
    sandbox = Sandbox.connect(call(server, "POST", "/v2/sandboxes", body).json()["sandboxID"], **server.sdk())
    for port in (8000, 9000):
        sandbox.commands.run(f"python3 -m http.server {port}", background=True)

    def status(port: int) -> tuple[int, Any]:
        headers = {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": str(port)}
        for _ in range(50):
            answer = httpx.get(f"{server.url}/", headers=headers, timeout=5)
            if answer.status_code != 502:
                break
            time.sleep(0.1)
        return answer.status_code, answer.json() if answer.status_code == 403 else None

    assert status(8000)[0] == 200
    open_line = socket.create_connection(("127.0.0.1", server.port), 5)
    ask = f"CONNECT x:8000 HTTP/1.1\r\nHost: x:8000\r\nE2b-Sandbox-Id: {sandbox.sandbox_id}\r\nE2b-Sandbox-Port: 8000"
    open_line.sendall(f"{ask}\r\n\r\n".encode())
    assert b" 200 " in open_line.recv(100)
    code, told = status(9000)
    assert (code, told["sandboxId"], told["port"], told["code"]) == (403, sandbox.sandbox_id, 9000, 403)
    sandbox.update_network({"deny_out": [PUBLIC]})  # says nothing of ports: they stay as they are
    assert status(9000)[0] == 403
    assert call(server, "PUT", f"/sandboxes/{sandbox.sandbox_id}/network", {"allowPorts": [9000]}).status_code == 204
    assert (status(8000)[0], status(9000)[0]) == (403, 200)
    with pytest.raises(ConnectionResetError), open_line:
        open_line.recv(100)
    sandbox.kill()


def test_peers_find_each_other_by_what_the_route_shows(server: RunningServer) -> None:
    first, second = [Sandbox.create("base", **server.sdk()) for _ in range(2)]
    boxes = {first.sandbox_id: second.sandbox_id, second.sandbox_id: first.sandbox_id}
    for one, other in boxes.items():
        assert call(server, "PUT", f"/sandboxes/{one}/network", {"peers": [other]}).status_code == 204
    address = call(server, "GET", f"/firkin/v1/sandboxes/{second.sandbox_id}/network").json()["address"]
    second.commands.run("python3 -m http.server 8000", background=True)
    fetch = f"curl -s -o /dev/null -w '%{{http_code}}' --retry 20 --retry-connrefused --retry-delay 0 http://{address}:8000/"
    assert first.commands.run(fetch).stdout == "200"
    for one in (first, second):
        one.kill()


def test_the_command_shows_policy_counters_and_refusals(
    sandbox: Sandbox, server: RunningServer, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in os.environ if name.startswith(("FIRKIN_", "E2B_"))]:
        monkeypatch.delenv(name)
    heard(sandbox, PUBLIC, OTHER, PRIVATE)
    time.sleep(0.6)
    where = ["--url", server.url, "--api-key", ALICE]
    assert _run(["sandbox", "network", sandbox.sandbox_id, *where]) == 0
    text = capfd.readouterr().out
    assert f"deny_out {OTHER}" in text
    assert "internet  yes" in text
    assert _run(["sandbox", "network", sandbox.sandbox_id, "--json", *where]) == 0
    told = json.loads(capfd.readouterr().out)
    assert told["counters"]["packetsRefused"] >= 2
    assert {flow["destination"] for flow in told["refused"]} >= {OTHER, PRIVATE}
