"""Volumes as E2B's clients see them, over folders: every test that needs no sandbox, and the wire itself."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator

import httpx
import pytest

from e2b import Volume
from firkin.drivers.memory import MemoryRootPreparer
from firkin.engine.backend import LocalBackend
from firkin.host import tree_files
from tests.e2b.conftest import ALICE, BOB, RunningServer, in_a_thread
from tests.e2b.conftest import server as plain_server
from tests.e2b.volume_lives import VolumeLives, content, made_volume, unique
from tests.volumes_in_folders import DriverWithVolumes

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="files on volumes get owners, which only root can give")
without_volumes = plain_server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    place = tmp_path_factory.mktemp("state")
    with in_a_thread(
        lambda: LocalBackend(
            driver=DriverWithVolumes(place / "volumes"), preparer=MemoryRootPreparer(), state_dir=place / "firkin"
        )
    ) as running:
        yield running


class TestVolumes(VolumeLives):
    """Everything that holds without a sandbox."""


@pytest.fixture
def volume(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Volume]:
    monkeypatch.setenv("E2B_VOLUME_API_URL", server.url)
    with made_volume(server) as volume:
        yield volume


def api(server: RunningServer, method: str, path: str, *, key: str | None = ALICE, **more: object) -> httpx.Response:
    headers = {"X-API-Key": key} if key else {}
    return httpx.request(method, server.url + path, headers=headers, timeout=20, **more)  # type: ignore[arg-type]


def test_a_list_ends_when_its_client_hangs_up(
    server: RunningServer, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, ended = threading.Event(), threading.Event()

    def endless(*_: object, wanted: Callable[[], bool], **_bounds: object) -> list[object]:
        begun.set()
        while wanted():
            threading.Event().wait(0.002)
        ended.set()
        return []

    monkeypatch.setattr(tree_files, "entries_below", endless)
    with socket.create_connection(("127.0.0.1", server.port), 10) as client:
        head = f"GET /volumecontent/{volume.volume_id}/dir?path=/ HTTP/1.1\r\nHost: x\r\n"
        client.sendall(f"{head}Authorization: Bearer {volume.token}\r\n\r\n".encode())
        assert begun.wait(5)
    assert ended.wait(5)


@pytest.mark.thorough
def test_the_calls_answer_as_the_contract_says(server: RunningServer) -> None:
    name = unique("wire")
    made = api(server, "POST", "/volumes", json={"name": name})
    assert made.status_code == 201
    assert set(made.json()) == {"volumeID", "name", "token"}
    volume_id = made.json()["volumeID"]
    assert api(server, "GET", f"/volumes/{volume_id}").json() == made.json()
    listed = api(server, "GET", "/volumes")
    assert (listed.status_code, {"volumeID": volume_id, "name": name} in listed.json()) == (200, True)
    for other in (BOB, None):
        assert api(server, "GET", f"/volumes/{volume_id}", key=other).status_code == (404 if other else 401)
    assert api(server, "DELETE", f"/volumes/{volume_id}").status_code == 204
    for method in ("GET", "DELETE"):
        missing = api(server, method, f"/volumes/{volume_id}")
        assert (missing.status_code, missing.json()["code"]) == (404, 404)
        assert api(server, method, "/volumes/..").status_code == 404


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("body", "why"),
    [
        ({}, "name"),
        ({"name": 1}, "str"),
        ({"name": "x", "size": 1}, "size"),
        ({"name": "x", "sizeMB": 1}, "size is 1048576"),
        ({"name": "x", "sizeMB": -5}, "size is -"),
        ({"name": "x", "sizeMB": 10**12}, "size is"),
        ({"name": "x", "sizeMB": 16 << 20}, "the host's disk has"),
        ({"name": "no.dots"}, "volume name"),
    ],
)
def test_an_impossible_volume_is_refused(server: RunningServer, body: object, why: str) -> None:
    answer = api(server, "POST", "/volumes", json=body)
    assert answer.status_code == 400
    assert why in answer.json()["message"]


@pytest.mark.thorough
def test_content_needs_the_volumes_own_token(server: RunningServer, volume: Volume) -> None:
    with made_volume(server, "other") as other:
        for token in (None, "nonsense", other.token, ALICE):
            answer = content(server, volume, "GET", "dir", token=token, params={"path": "/"})
            assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
    keyed = api(server, "GET", f"/volumecontent/{volume.volume_id}/dir", params={"path": "/"})
    assert keyed.status_code == 401, "an API key is no volume token"
    assert httpx.get(f"{server.url}/volumecontent/nothing/dir", params={"path": "/"}).status_code == 401


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("method", "place", "params", "status", "code"),
    [
        ("GET", "path", {}, 400, "invalid_request"),
        ("GET", "path", {"path": ""}, 400, "invalid_request"),
        ("GET", "path", {"path": "/x", "follow": "1"}, 400, "invalid_request"),
        ("GET", "path", {"path": "/a\0b"}, 400, "invalid_spec"),
        ("GET", "path", {"path": "/" + "x" * 5000}, 400, "invalid_spec"),
        ("GET", "path", {"path": "/" + "x" * 300}, 400, "name_too_long"),
        ("GET", "path", {"path": "/none"}, 404, "not_found"),
        ("GET", "path", {"path": "/file/below"}, 404, "not_found"),
        ("GET", "dir", {"path": "/file"}, 400, "not_a_directory"),
        ("GET", "dir", {"path": "/", "depth": "x"}, 400, "invalid_request"),
        ("GET", "dir", {"path": "/", "depth": "9999"}, 400, "invalid_spec"),
        ("GET", "file", {"path": "/"}, 400, "is_a_directory"),
        ("PUT", "file", {"path": "/"}, 409, "other"),
        ("PUT", "file", {"path": "/new", "mode": "99999"}, 400, "invalid_spec"),
        ("PUT", "file", {"path": "/new", "uid": "-1"}, 400, "invalid_request"),
        ("PUT", "file", {"path": "/new", "force": "perhaps"}, 400, "invalid_request"),
        ("PUT", "file", {"path": "/file/below", "force": "true"}, 400, "not_a_directory"),
        ("POST", "dir", {"path": "/"}, 409, "already_exists"),
        ("POST", "dir", {"path": "/file", "force": "true"}, 409, "already_exists"),
        ("DELETE", "path", {"path": "/none"}, 404, "not_found"),
        ("POST", "file", {"path": "/x"}, 405, "not_allowed"),
        ("GET", "else", {"path": "/x"}, 404, "not_found"),
    ],
)
def test_what_cannot_be_is_refused_by_a_word(
    server: RunningServer, volume: Volume, method: str, place: str, params: dict[str, str], status: int, code: str
) -> None:
    volume.write_file("/file", "x")
    answer = content(server, volume, method, place, params=params)
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert answer.json()["message"]
    assert [entry.path for entry in volume.list("/")] == ["/file"]


@pytest.mark.thorough
def test_a_patch_takes_three_fields_and_no_other(server: RunningServer, volume: Volume) -> None:
    volume.write_file("/file", "x")
    for body, why in (('{"owner": 1}', "owner"), ("[]", "object"), ('{"mode": "rw"}', "mode"), ("{", "JSON")):
        answer = content(server, volume, "PATCH", "path", params={"path": "/file"}, content=body)
        assert (answer.status_code, why in answer.text) == (400, True), answer.text


def test_names_that_are_no_text_are_listed(server: RunningServer, volume: Volume) -> None:
    assert server.backend is not None
    folder = server.backend._driver.keeper.folder / volume.volume_id  # type: ignore[attr-defined]
    (folder / os.fsdecode(b"odd\xff")).write_text("x")
    os.utime(folder / os.fsdecode(b"odd\xff"), ns=(0, 2**62))
    assert [entry.name for entry in volume.list("/")] == ["odd�"]


def test_a_browser_may_ask(server: RunningServer, volume: Volume) -> None:
    answer = httpx.options(f"{server.url}/volumecontent/{volume.volume_id}/file")
    assert answer.status_code == 204
    assert "PATCH" in answer.headers["access-control-allow-methods"]
    assert "Authorization" in answer.headers["access-control-allow-headers"]


@pytest.mark.thorough
def test_firkins_own_routes_tell_more(server: RunningServer, volume: Volume) -> None:
    volume.write_file("/d/file", "x", force=True)
    route = f"/firkin/v1/volumes/{volume.volume_id}"
    shown = api(server, "GET", route).json()
    assert (shown["id"], shown["name"], shown["owner"]) == (volume.volume_id, volume.name, "alice")
    assert shown["total_bytes"] > 0
    assert volume.volume_id in [one["id"] for one in api(server, "GET", "/firkin/v1/volumes").json()]
    packed = api(server, "GET", f"{route}/archive", params={"path": "/d/file"})
    assert packed.status_code == 200
    assert api(server, "GET", f"{route}/entry", params={"path": "/d"}).json()["type"] == "directory"
    assert api(server, "PUT", f"{route}/archive", params={"path": "/e"}, content=packed.content).json() == {
        "entries": 1
    }
    assert volume.read_file("/e/file") == "x"
    assert api(server, "GET", f"{route}/archive", params={"path": "/none"}).status_code == 404
    for path in ("", "/archive"):
        assert api(server, "GET", route + path, key=BOB).status_code == 404
    assert api(server, "PATCH", route).status_code == 404


@pytest.mark.thorough
def test_a_driver_without_volumes_says_so(without_volumes: RunningServer) -> None:
    for method, path in (
        ("GET", "/volumes"),
        ("POST", "/volumes"),
        ("GET", "/volumes/x"),
        ("GET", "/firkin/v1/volumes"),
    ):
        answer = api(without_volumes, method, path, json={"name": "x"} if method == "POST" else None)
        assert (answer.status_code, "keeps no volumes" in answer.text) == (400, True), answer.text
    body = {"templateID": "base", "volumeMounts": [{"name": "x", "path": "/x"}]}
    answer = api(without_volumes, "POST", "/sandboxes", json=body)
    assert (answer.status_code, "keeps no volumes" in answer.text) == (400, True), answer.text
