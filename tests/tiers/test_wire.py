"""Tiers over E2B's protocol: the official SDK asks by a header, others by a field, and all see what came of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from e2b import InvalidArgumentException, Sandbox, SandboxException, Template
from firkin.drivers.memory import MemoryRootPreparer
from firkin.e2b.operators import OPERATOR_HEADER, operator_token
from firkin.engine.backend import LocalBackend
from firkin.law.ids import SandboxId
from firkin.law.isolation import Isolation
from tests.e2b.conftest import ALICE, BOB, SECRET, RunningServer, in_a_thread

from .worlds import World

HEADER = "X-Firkin-Isolation"
OPERATOR = {OPERATOR_HEADER: operator_token(SECRET)}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    world = World(tmp_path_factory.mktemp("world") / "state")
    world.drivers["qemu"].lacks = ("There is no /dev/kvm; load kvm_intel.",)
    return world


@pytest.fixture(scope="module")
def server(world: World) -> Iterator[RunningServer]:
    with in_a_thread(
        lambda: LocalBackend(
            driver=world.driver(), preparer=MemoryRootPreparer(), state_dir=world.folder, server_secret=SECRET
        )
    ) as running:
        yield running


@pytest.fixture
def http(server: RunningServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, headers={"X-API-Key": ALICE}, timeout=20) as client:
        yield client


def driver_of(server: RunningServer, sandbox_id: str) -> str:
    assert server.backend is not None
    assert server.loop is not None
    work = server.backend.sandboxes.inspect(SandboxId(sandbox_id))
    return asyncio.run_coroutine_threadsafe(work, server.loop).result(10).driver


@pytest.mark.parametrize("option", ["headers", "api_headers"])
def test_the_official_sdk_asks_by_a_header_and_goes_on_as_ever(server: RunningServer, option: str) -> None:
    with Sandbox.create("base", **{option: {HEADER: "gvisor"}}, **server.sdk()) as sandbox:
        assert driver_of(server, sandbox.sandbox_id) == "gvisor"
        assert sandbox.commands.run("echo hi").stdout == "hi\n"
        assert sandbox.get_info().template_id == "base"
        assert Sandbox.connect(sandbox.sandbox_id, **server.sdk()).is_running()


def test_without_a_wish_the_default_tier_is_taken(server: RunningServer) -> None:
    with Sandbox.create("base", **server.sdk()) as sandbox:
        assert driver_of(server, sandbox.sandbox_id) == "namespaces"


def test_the_official_sdk_is_told_what_this_machine_lacks(server: RunningServer) -> None:
    with pytest.raises((SandboxException, InvalidArgumentException), match="no /dev/kvm; load kvm_intel"):
        Sandbox.create("base", headers={HEADER: "microvm"}, **server.sdk())


def test_the_field_and_the_header_say_the_same_or_are_refused(server: RunningServer, http: httpx.Client) -> None:
    for given, headers in (({"isolation": "gvisor"}, {}), ({"isolation": "gvisor"}, {HEADER: "gvisor"})):
        made = http.post("/v2/sandboxes", json={"templateID": "base", **given}, headers=headers)
        assert made.status_code == 201, made.text
        assert driver_of(server, made.json()["sandboxID"]) == "gvisor"
        assert "isolation" not in made.json()
        assert "isolation" not in http.get(f"/sandboxes/{made.json()['sandboxID']}").json()
        http.delete(f"/sandboxes/{made.json()['sandboxID']}")
    other = http.post("/sandboxes", json={"templateID": "base", "isolation": "gvisor"}, headers={HEADER: "oci"})
    assert (other.status_code, "leave one out" in other.text) == (400, True)
    unknown = http.post("/sandboxes", json={"templateID": "base", "isolation": "hard"})
    assert (unknown.status_code, "no isolation is called 'hard'" in unknown.text) == (400, True)


def test_an_idempotency_key_does_not_hide_another_wish(http: httpx.Client) -> None:
    def create(tier: str) -> httpx.Response:
        return http.post(
            "/v2/sandboxes", json={"templateID": "base"}, headers={HEADER: tier, "Idempotency-Key": "same"}
        )

    made = create("gvisor")
    assert create("gvisor").json()["sandboxID"] == made.json()["sandboxID"]
    assert create("namespaces").status_code == 409
    http.delete(f"/sandboxes/{made.json()['sandboxID']}")


def test_what_holds_a_sandbox_in_is_shown_to_its_owner_alone(server: RunningServer, http: httpx.Client) -> None:
    made = http.post("/sandboxes", json={"templateID": "base", "isolation": "strongest"}).json()["sandboxID"]
    path = f"/firkin/v1/sandboxes/{made}/isolation"
    shown: dict[str, Any] = http.get(path).json()
    assert (shown["sandbox_id"], shown["tier"], shown["driver"]) == (made, "none", "gvisor")
    assert set(shown["unread"]) == {name for name, value in shown.items() if value is None}
    assert http.get(path, headers={"X-API-Key": BOB}).status_code == 404
    assert http.get(path, headers={"X-API-Key": BOB, **OPERATOR}).status_code == 200
    explained = http.get(f"/firkin/v1/sandboxes/{made}/explain").json()
    assert (explained["isolation"], explained["driver"]) == ("gvisor", "gvisor")
    http.delete(f"/sandboxes/{made}")
    assert http.get(path).status_code == 404


def test_the_tiers_are_listed(http: httpx.Client) -> None:
    listed = http.get("/firkin/v1/tiers").json()
    assert [(each["isolation"], each["driver"], each["default"], each["ready"]) for each in listed] == [
        ("namespaces", "namespaces", True, True),
        ("microvm", "qemu", False, False),
        ("gvisor", "gvisor", False, True),
    ]
    assert listed[1]["reasons"] == ["There is no /dev/kvm; load kvm_intel."]
    assert all(len(each["capabilities"]) == 42 for each in listed)


def test_a_template_carries_its_tier_from_the_native_route(server: RunningServer, http: httpx.Client) -> None:
    answer = http.post(
        "/firkin/v1/templates", json={"source": "host", "id": "hard", "isolation": "gvisor"}, headers=OPERATOR
    )
    last = json.loads(answer.text.splitlines()[-1])
    assert last["template"]["isolation"] == "gvisor"
    with Sandbox.create("hard", **server.sdk()) as sandbox:
        assert driver_of(server, sandbox.sandbox_id) == "gvisor"
    refused = http.post("/firkin/v1/templates", json={"source": "host", "isolation": "microvm"}, headers=OPERATOR)
    assert "no /dev/kvm" in json.loads(refused.text.splitlines()[-1])["error"]["message"]


@pytest.mark.thorough
def test_a_template_built_by_the_official_sdk_carries_the_tier_of_its_header(server: RunningServer) -> None:
    options = {"api_key": ALICE, "api_url": server.url}
    Template.build(
        Template().from_template("base").run_cmd("echo done > /tmp/done"),
        "hardened",
        headers={HEADER: Isolation.GVISOR.value},
        **options,
    )
    with Sandbox.create("hardened", **server.sdk()) as sandbox:
        assert driver_of(server, sandbox.sandbox_id) == "gvisor"
        assert sandbox.commands.run("cat /tmp/done").stdout == "done\n"
