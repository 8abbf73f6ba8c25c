"""Secrets as E2B's clients see them: the official SDK, sync and async, and the wire itself."""

from __future__ import annotations

import uuid

import httpx
import pytest
from e2b.exceptions import SecretException, SecretNotFoundException

from e2b import AsyncSecret, Secret
from tests.e2b.conftest import ALICE, BOB, RunningServer

VALUE = "sk-live-holmes-221b"


def unique(name: str) -> str:
    return f"{name}-{uuid.uuid4().hex[:8]}"


def api(server: RunningServer, method: str, path: str, *, key: str | None = ALICE, **more: object) -> httpx.Response:
    headers = {"X-API-Key": key} if key else {}
    return httpx.request(method, server.url + path, headers=headers, timeout=20, **more)  # type: ignore[arg-type]


def test_the_sdk_makes_changes_lists_and_destroys(server: RunningServer) -> None:
    name, sdk = unique("Sync"), server.sdk()
    made = Secret.create(name, VALUE, {"team": "a"}, **sdk)
    assert (made.name, made.version, made.metadata) == (name.lower(), 1, {"team": "a"})
    assert made.secret_id.startswith("sec_")
    assert Secret.update(name, VALUE + "2", **sdk).version == 2
    assert Secret.update(made.secret_id, VALUE, {}, **sdk).metadata == {}
    assert Secret.get_info(name, **sdk).version == 3
    assert Secret.exists(made.secret_id, **sdk)
    assert Secret.destroy(name, **sdk)
    assert not Secret.destroy(name, **sdk)
    assert not Secret.exists(name, **sdk)
    with pytest.raises(SecretNotFoundException):
        Secret.update(name, VALUE, **sdk)
    with pytest.raises(SecretNotFoundException):
        Secret.get_info(name, **sdk)


async def test_the_async_sdk_does_the_same(server: RunningServer) -> None:
    name, sdk = unique("async"), server.sdk()
    made = await AsyncSecret.create(name, VALUE, **sdk)
    assert (await AsyncSecret.update(name, "other", **sdk)).version == 2
    assert made.secret_id in [info.secret_id for info in await AsyncSecret.list(**sdk).next_items()]
    assert await AsyncSecret.destroy(made.secret_id, **sdk)
    assert not await AsyncSecret.exists(name, **sdk)


def test_a_list_comes_in_pages_newest_first(server: RunningServer) -> None:
    sdk = server.sdk(BOB)
    made = [Secret.create(unique("page"), VALUE, **sdk).secret_id for _ in range(5)]
    pages, found = Secret.list(limit=2, **sdk), []
    while pages.has_next:
        items = pages.next_items()
        assert len(items) <= 2
        found += [info.secret_id for info in items]
    assert found == made[::-1]
    for secret_id in made:
        Secret.destroy(secret_id, **sdk)


@pytest.mark.thorough
def test_the_calls_answer_as_the_contract_says(server: RunningServer) -> None:
    name = unique("wire")
    made = api(server, "POST", "/secrets", json={"name": name, "value": VALUE})
    assert made.status_code == 201
    assert set(made.json()) == {"secretID", "name", "currentVersion", "metadata", "createdAt", "updatedAt"}
    path = f"/secrets/{made.json()['secretID']}"
    assert api(server, "GET", path).json() == made.json()
    assert api(server, "POST", path, json={"value": "x"}).status_code == 200
    for answer in (made, api(server, "GET", "/secrets"), api(server, "GET", path)):
        assert VALUE not in answer.text
    for method, body in (("GET", None), ("POST", {"value": "x"}), ("DELETE", None)):
        assert api(server, method, path, key=BOB, json=body).status_code == 404
        assert api(server, method, path, key=None, json=body).status_code == 401
    taken = api(server, "POST", "/secrets", json={"name": name.upper(), "value": VALUE})
    assert (taken.status_code, taken.json()["message"]) == (409, f"a secret called '{name}' already exists")
    assert api(server, "DELETE", path).status_code == 204
    assert api(server, "DELETE", path).status_code == 404


def test_a_name_may_need_escaping(server: RunningServer) -> None:
    name, sdk = unique("key of ünit"), server.sdk()
    Secret.create(name, VALUE, **sdk)
    assert Secret.get_info(name, **sdk).name == name
    assert Secret.destroy(name, **sdk)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "body",
    [
        {"name": "", "value": VALUE},
        {"name": "a{b", "value": VALUE},
        {"name": "sec_mine", "value": VALUE},
        {"name": "x" * 129, "value": VALUE},
        {"name": "ok", "value": ""},
        {"name": "ok", "value": VALUE + "\nX-Evil: 1"},
        {"name": "ok", "value": VALUE * 1000},
        {"name": "ok", "value": VALUE, "metadata": {str(n): "" for n in range(33)}},
        {"name": "ok", "value": VALUE, "metadata": {"k" * 129: ""}},
        {"name": "ok", "value": VALUE, "metadata": {"k": "v" * 1025}},
        {"name": "ok", "value": VALUE, "metadata": {f"{n}": "v" * 1000 for n in range(9)}},
        {"name": "ok", "value": 7},
        {"name": "ok"},
        {"name": "ok", "value": VALUE, "more": 1},
    ],
)
def test_what_cannot_be_kept_is_refused_without_its_value(server: RunningServer, body: dict[str, object]) -> None:
    answer = api(server, "POST", "/secrets", json=body)
    assert answer.status_code == 400
    assert VALUE not in answer.text


def test_a_taken_name_is_the_sdk_s_error(server: RunningServer) -> None:
    name, sdk = unique("taken"), server.sdk()
    Secret.create(name, VALUE, **sdk)
    with pytest.raises(SecretException, match="409"):
        Secret.create(name, VALUE, **sdk)
    Secret.destroy(name, **sdk)
