"""Pages of sandboxes, as a plain HTTP client sees them."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from e2b import Template

from .conftest import BOB, RunningServer
from .raw import RawClient, raw_client


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[RawClient]:
    """With three sandboxes of one kind, one of them paused, beside its own."""
    with raw_client(server) as made:
        body = {"templateID": "base", "metadata": {"kind": "a"}}
        paused = [made.api("POST", "/v2/sandboxes", body).json()["sandboxID"] for _ in range(3)][-1]
        made.api("POST", f"/sandboxes/{paused}/pause", {})
        yield made
        for each in made.api("GET", "/v2/sandboxes?metadata=kind%3Da").json():
            made.api("DELETE", f"/sandboxes/{each['sandboxID']}")


@pytest.mark.parametrize(
    ("query", "shown", "running"),
    [
        ("", 4, "3"),
        ("metadata=kind%3Da", 3, "2"),
        ("metadata=kind%3Da&limit=1", 1, "2"),
        ("metadata=kind%3Da&state=running", 2, "2"),
        ("metadata=kind%3Da&state=paused", 1, None),
        ("template=other", 0, "0"),
        ("startedAfter=2999-01-01T00:00:00Z", 0, "0"),
    ],
)
def test_the_running_are_counted_after_the_filters_and_before_the_page(
    client: RawClient, query: str, shown: int, running: str | None
) -> None:
    answer = client.api("GET", f"/v2/sandboxes?{query}")
    assert (len(answer.json()), answer.headers.get("x-total-running")) == (shown, running)


@pytest.mark.thorough
def test_every_page_tells_the_same_count(client: RawClient) -> None:
    first = client.api("GET", "/v2/sandboxes?limit=3")
    last = client.api("GET", f"/v2/sandboxes?limit=3&nextToken={first.headers['x-next-token']}")
    assert [len(page.json()) for page in (first, last)] == [3, 1]
    assert [page.headers["x-total-running"] for page in (first, last)] == ["3", "3"]


@pytest.mark.thorough
def test_sandboxes_of_another_teams_template_are_found_by_its_owners_name(server: RunningServer) -> None:
    Template.build(Template().from_template("base"), "lent", **server.sdk())  # type: ignore[arg-type]
    with httpx.Client(base_url=server.url, timeout=20) as http:
        client = RawClient(server, http)
        assert client.api("PATCH", "/v2/templates/lent", {"public": True}).status_code == 200
        made = client.api("POST", "/v2/sandboxes", {"templateID": "alice/lent"}, key=BOB)
        assert made.status_code == 201
        try:
            for text, count in {"alice/lent": 1, "lent": 1, "alice/LENT": 1, "bob/lent": 0, "lend": 0}.items():
                found = client.api("GET", "/v2/sandboxes", params={"template": text}, key=BOB).json()
                assert len(found) == count, text
        finally:
            client.api("DELETE", f"/sandboxes/{made.json()['sandboxID']}", key=BOB)


@pytest.mark.parametrize(("text", "count"), [("base", 5), ("BASE", 5), ("alice/base", 0)])
def test_the_operators_template_is_found_by_its_name_alone(client: RawClient, text: str, count: int) -> None:
    made = client.api("POST", "/v2/sandboxes", {"templateID": "BASE"})
    try:
        assert len(client.api("GET", "/v2/sandboxes", params={"template": text}).json()) == count
    finally:
        client.api("DELETE", f"/sandboxes/{made.json()['sandboxID']}")
