"""The same through the official SDK: secrets, rules, names and a proxy, as E2B's own examples ask for them."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from e2b.exceptions import SandboxException

from e2b import Sandbox, Secret
from firkin.cli.main import _run
from tests.e2b.conftest import ALICE, RunningServer, in_a_thread
from tests.namespaces.internet import DNS, Internet, internet
from tests.namespaces.modern_hosts import MODERN
from tests.namespaces.test_egress import made_backend

VALUE = "sk-live-sdk-9915"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Internet]:
    with internet(tmp_path_factory.mktemp("internet"), modern=True) as up:
        yield up


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, world: Internet) -> Iterator[RunningServer]:
    state: Path = tmp_path_factory.mktemp("state")
    with in_a_thread(lambda: made_backend(state, world)[0]) as running:
        yield running


def test_a_rule_with_a_secret_works_and_other_names_do_not(server: RunningServer, world: Internet) -> None:
    sdk = server.sdk()
    Secret.create("Upstream", VALUE, **sdk)
    network = {
        "allow_out": lambda ctx: [*ctx.rules, "allowed.test"],
        "deny_out": lambda ctx: [ctx.all_traffic],
        "rules": {"api.rule.test": [{"transform": {"headers": {"X-Key": f"k {Secret.fill('Upstream')}"}}}]},
        "dns_servers": [DNS],
    }
    sandbox = Sandbox.create("base", network=network, **sdk)
    try:
        said = sandbox.commands.run("curl -sS -m 10 https://api.rule.test/sdk").stdout
        assert json.loads(said)["path"] == "/sdk"
        assert f"k {VALUE}" in json.dumps(world.records(path="/sdk"))
        assert sandbox.commands.run("curl -sS -k -m 10 https://allowed.test/sdk2").stdout
        assert sandbox.commands.run("curl -sS -k -m 10 https://other.test/ || echo no").stdout == "no\n"
        assert VALUE not in sandbox.commands.run("env").stdout
        told = sandbox.get_info(**sdk).network
        assert told["allow_out"] == ["api.rule.test", "allowed.test"]
        assert VALUE not in str(told)
        Secret.destroy("upstream", **sdk)
        assert "does not exist" in sandbox.commands.run("curl -sS -m 10 https://api.rule.test/gone").stdout
    finally:
        sandbox.kill()


def test_an_unknown_secret_is_a_bad_request(server: RunningServer) -> None:
    rules = {"api.rule.test": [{"transform": {"headers": {"X-Key": Secret.fill("never")}}}]}
    with pytest.raises(SandboxException, match=r"400.*'never', which does not exist"):
        Sandbox.create("base", network={"rules": rules}, **server.sdk())


def test_a_proxy_s_password_is_not_told(server: RunningServer, world: Internet) -> None:
    proxy = {"address": "proxy.test:1080", "username": "u", "password": "p"}
    network = {"egress_proxy": proxy, "dns_servers": [DNS]}
    sandbox = Sandbox.create("base", network=network, **server.sdk())
    try:
        assert sandbox.commands.run("curl -sS -m 10 http://allowed.test/by-proxy").stdout
        assert "password" not in str(sandbox.get_info(**server.sdk()).network)
    finally:
        sandbox.kill()
    assert [line["port"] for line in world.records(proxied="8.7.6.10")] == [80]


def test_a_proxy_s_credentials_are_one_line(server: RunningServer) -> None:
    proxy = {"address": "proxy.test:1080", "username": "u", "password": "p\nq"}
    with pytest.raises(SandboxException, match=r"400.*control characters"):
        Sandbox.create("base", network={"egress_proxy": proxy, "dns_servers": [DNS]}, **server.sdk())


def test_the_route_and_the_command_show_the_names_that_were_refused(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in os.environ if name.startswith(("FIRKIN_", "E2B_"))]:
        monkeypatch.delenv(name)
    network = {"allow_out": ["allowed.test"], "deny_out": ["0.0.0.0/0"], "dns_servers": [DNS]}
    sandbox = Sandbox.create("base", network=network, **server.sdk())
    try:
        sandbox.commands.run("curl -s -m 5 --resolve other.test:443:8.7.6.12 https://other.test/a?b=c || true")
        path = f"{server.url}/firkin/v1/sandboxes/{sandbox.sandbox_id}/network"
        for _ in range(50):
            told = httpx.get(path, headers={"X-API-Key": ALICE}, timeout=20).json()["refused"]
            if told:
                break
            time.sleep(0.1)
        [flow] = told
        assert flow["at"]
        assert {key: flow[key] for key in flow if key != "at"} == {
            "destination": "other.test",
            "protocol": "tcp",
            "port": 443,
            "packets": 1,
            "rule": "allow_out does not have that name",
        }
        assert _run(["sandbox", "network", sandbox.sandbox_id, "--url", server.url, "--api-key", ALICE]) == 0
        assert re.search(r"other\.test +tcp +443 +1 +allow_out does not have that name", capfd.readouterr().out)
    finally:
        sandbox.kill()


def test_the_command_shows_the_host_and_the_rule_of_a_stream_that_was_refused(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in os.environ if name.startswith(("FIRKIN_", "E2B_"))]:
        monkeypatch.delenv(name)
    rules = {MODERN: [{"transform": {"headers": {"X-Team": "a"}}}]}
    network = {"allow_out": [MODERN], "deny_out": ["0.0.0.0/0"], "rules": rules, "dns_servers": [DNS]}
    sandbox = Sandbox.create("base", network=network, **server.sdk())
    try:
        ask = f"curl -s --http2 -m 5 -H 'Host: other.test' https://{MODERN}/a?b=c -w '%{{http_version}} %{{http_code}}'"
        assert sandbox.commands.run(ask).stdout.endswith("2 421")
        wanted = rf"{re.escape(MODERN)} +http +443 +1 +the request asks for another host [a-z ]+: rule {MODERN}\n"
        shown = ""
        for _ in range(50):
            assert _run(["sandbox", "network", sandbox.sandbox_id, "--url", server.url, "--api-key", ALICE]) == 0
            shown = capfd.readouterr().out
            if re.search(wanted, shown):
                break
            time.sleep(0.1)
        assert re.search(wanted, shown), shown
        assert "other.test" not in shown
        assert "/a" not in shown.partition("Refused")[2]
    finally:
        sandbox.kill()


def test_an_update_leads_a_running_sandbox_to_its_gateway_and_away_again(
    server: RunningServer, world: Internet
) -> None:
    sdk = server.sdk()
    Secret.create("late", VALUE, **sdk)
    rules = {"api.rule.test": [{"transform": {"headers": {"X-Key": Secret.fill("late")}}}]}
    wanted = {"allow_out": ["api.rule.test"], "deny_out": ["0.0.0.0/0"], "rules": rules, "dns_servers": [DNS]}
    sandbox = Sandbox.create("base", allow_internet_access=False, **sdk)
    ask = "curl -sS -m 5 https://api.rule.test/{} || echo no"
    try:
        assert sandbox.commands.run(ask.format("early")).stdout == "no\n"
        sandbox.update_network(wanted, **sdk)
        assert json.loads(sandbox.commands.run(ask.format("led")).stdout)["path"] == "/led"
        assert VALUE in json.dumps(world.records(path="/led"))
        assert sandbox.get_info(**sdk).network["allow_out"] == ["api.rule.test"]
        unknown = {"api.rule.test": [{"transform": {"headers": {"X-Key": Secret.fill("never")}}}]}
        with pytest.raises(SandboxException, match="which does not exist"):
            sandbox.update_network({**wanted, "rules": unknown}, **sdk)
        assert json.loads(sandbox.commands.run(ask.format("still")).stdout)["path"] == "/still"
        sandbox.update_network({"allow_internet_access": False}, **sdk)
        assert sandbox.commands.run(ask.format("away")).stdout == "no\n"
        assert not world.records(path="/away")
    finally:
        sandbox.kill()
        Secret.destroy("late", **sdk)
