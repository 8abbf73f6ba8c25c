"""`memory` in a request for a snapshot: what the sandbox's tier does, or a refusal that says what it does."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .conftest import RunningServer
from .raw import RawClient, raw_client


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[RawClient]:
    with raw_client(server) as made:
        yield made


@pytest.fixture(scope="module")
def path(client: RawClient) -> Iterator[str]:
    sandbox = client.api("POST", "/v2/sandboxes", {"templateID": "base"}).json()["sandboxID"]
    yield f"/sandboxes/{sandbox}/snapshots"
    client.api("DELETE", f"/sandboxes/{sandbox}")


@pytest.mark.parametrize("wish", [{}, {"memory": None}, {"memory": False}])
def test_files_alone_are_what_this_tier_captures(client: RawClient, path: str, wish: dict[str, bool | None]) -> None:
    made = client.api("POST", path, wish)
    assert made.status_code == 201
    client.api("DELETE", f"/templates/{made.json()['snapshotID']}")


def test_memory_is_refused_by_what_the_sandboxes_own_driver_does(client: RawClient, path: str) -> None:
    answer = client.api("POST", path, {"memory": True})
    assert (answer.status_code, answer.json()["error_code"]) == (400, "snapshot_memory_unsupported")
    assert "by the driver 'memory' is of the kind 'filesystem'" in answer.json()["message"]
