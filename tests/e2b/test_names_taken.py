"""A name is a snapshot's or a template's: either is refused the other's, and an id means what it was given for."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

import httpx
import pytest

from firkin.law.ids import SandboxId
from firkin.law.snapshots import SnapshotOptions

from .conftest import RunningServer
from .raw import RawClient, raw_client

T = TypeVar("T")


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[RawClient]:
    with raw_client(server) as made:
        yield made


def asked(client: RawClient, name: str) -> httpx.Response:
    return client.api("POST", "/v3/templates", {"name": name})


def snapped(client: RawClient, name: str) -> httpx.Response:
    return client.api("POST", f"/sandboxes/{client.sandbox['sandboxID']}/snapshots", {"name": name})


def in_the_servers_loop(server: RunningServer, work: Coroutine[Any, Any, T]) -> T:
    assert server.loop is not None
    return asyncio.run_coroutine_threadsafe(work, server.loop).result(20)


def names(client: RawClient) -> list[str]:
    return [name for row in client.api("GET", "/snapshots").json() for name in row["names"]]


@pytest.mark.parametrize("name", ["mine", "mine:v1", "alice/MINE:v2"])
def test_a_snapshot_cannot_have_the_name_of_a_tenants_own_template(client: RawClient, name: str) -> None:
    assert asked(client, "mine").status_code in (202, 409)
    answer = snapped(client, name)
    assert (answer.status_code, answer.json()["message"]) == (409, "A template is called 'mine'; choose another name")


def test_a_template_cannot_have_the_name_of_a_snapshot(client: RawClient) -> None:
    assert snapped(client, "later:v1").status_code == 201
    answer = asked(client, "later")
    assert answer.status_code == 409
    assert answer.json()["message"] == "A snapshot is called 'later:v1'; choose another name, or delete the snapshot"
    assert client.api("DELETE", "/templates/alice%2Flater:v1").status_code == 204
    assert asked(client, "later").status_code == 202


def test_the_id_of_a_snapshot_means_it_though_a_template_has_its_name(client: RawClient, server: RunningServer) -> None:
    """As an earlier version let them be."""
    assert asked(client, "both").status_code == 202
    assert server.backend is not None
    options = SnapshotOptions(name="both:v1", owner="alice")
    source = SandboxId(client.sandbox["sandboxID"])
    in_the_servers_loop(server, server.backend.snapshots.capture(source, options))
    made = client.api("POST", "/v2/sandboxes", {"templateID": "alice/both:v1"})
    assert (made.status_code, made.json()["alias"]) == (201, "both")
    client.api("DELETE", f"/sandboxes/{made.json()['sandboxID']}")
    assert client.api("DELETE", "/templates/alice%2Fboth:v1").status_code == 204
    assert "alice/both:v1" not in names(client)
    assert client.api("GET", "/templates/both").status_code == 200
    assert client.api("DELETE", "/templates/alice%2Fboth:v1").status_code == 404, "nor does a tag mean the whole"
    assert client.api("GET", "/templates/both").status_code == 200
