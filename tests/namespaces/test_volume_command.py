"""``firkin volume`` against a server over the real driver: what it prints, what it refuses, what it leaves."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from firkin.cli.main import _run
from tests.e2b.conftest import ALICE, BOB, RunningServer, in_a_thread
from tests.host.test_tar_streams import seen
from tests.namespaces.conftest import backend_at


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str


Firkin = Callable[..., Ended]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    state_dir = tmp_path_factory.mktemp("state")
    with in_a_thread(lambda: backend_at(state_dir)) as running:
        yield running


@pytest.fixture
def firkin(
    server: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Firkin:
    """The command line in this very process."""
    for name in [name for name in os.environ if name.startswith(("FIRKIN_", "E2B_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("FIRKIN_STATE_DIR", str(tmp_path / "no-state"))

    def call(*args: str, key: str = ALICE) -> Ended:
        code = _run(["volume", *args, "--url", server.url, "--api-key", key])
        return Ended(code, *capfd.readouterr())

    return call


@pytest.fixture
def volume(firkin: Firkin) -> Iterator[str]:
    made = firkin("create", "work", "--size", "100m", "--json")
    assert made.code == 0, made.err
    yield json.loads(made.out)["id"]
    firkin("delete", "work")


def test_a_volume_is_made_shown_and_deleted(firkin: Firkin) -> None:
    made = firkin("create", "shown", "--size", "100m")
    assert (made.code, made.err) == (0, "")
    volume_id = made.out.strip()
    [row] = json.loads(firkin("list", "--json").out)
    assert (row["id"], row["name"], row["owner"], row["size_bytes"]) == (volume_id, "shown", "alice", 100 << 20)
    assert "shown" in firkin("list").out
    for name in ("shown", volume_id):
        shown = json.loads(firkin("show", name, "--json").out)
        assert 0 < shown["total_bytes"] <= 100 << 20
    assert firkin("show", "shown").out.startswith("id ")
    assert firkin("delete", "shown").code == 0
    assert firkin("list").out == "no volumes\n"


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["create", "a.b"], "letters, digits"),
        (["create", "work"], "already exists"),
        (["create", "tiny", "--size", "1m"], "the size is"),
        (["create", "odd", "--size", "much"], "is not a size"),
        (["show", "nobody"], "no volume is called 'nobody'"),
        (["delete", "nobody"], "no volume is called 'nobody'"),
        (["get", "work:/none", "there"], "was not found"),
        (["put", "/nonexistent", "work"], "does not exist"),
        (["put", "/etc/hostname", "work", "--owner", "me"], "--owner takes"),
        (["put", "/etc/hostname", "work", "--owner", "70000"], "--owner takes"),
        (["put", "/etc/hostname", "nobody:/x"], "no volume is called"),
    ],
)
def test_a_wrong_request_is_one_sentence(firkin: Firkin, volume: str, args: list[str], says: str) -> None:
    ended = firkin(*args)
    assert (ended.code, ended.out) == (2, "")
    assert says in ended.err
    assert ended.err.count("\n") == 1


def test_another_tenants_volume_is_unknown(firkin: Firkin, volume: str) -> None:
    assert firkin("list", key=BOB).out == "no volumes\n"
    for name in ("work", volume):
        assert firkin("show", name, key=BOB).code == 2
        assert firkin("get", name, "there", key=BOB).code == 2


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    source = tmp_path / "folder"
    (source / "sub" / "empty").mkdir(parents=True)
    (source / "large").write_bytes(os.urandom(3_000_000))
    (source / "none").touch()
    (source / "sub" / "link").symlink_to("../large")
    (source / "large").chmod(0o640)
    (source / "sub").chmod(0o2770)
    os.chown(source / "sub", 12, 34)
    return source


def test_a_folder_goes_and_comes_back(firkin: Firkin, volume: str, folder: Path, tmp_path: Path) -> None:
    assert firkin("put", str(folder), "work:/a/b").out == "6 entries written to work:/a/b\n"
    back = firkin("get", "work:/a/b", str(tmp_path / "back"))
    assert (back.code, back.err) == (0, "")
    (folder / "sub").chmod(0o770)  # setuid and setgid bits do not come along
    assert seen(tmp_path / "back") == seen(folder)
    assert (tmp_path / "back" / "sub").stat().st_uid == 12


def test_files_go_where_they_are_told(firkin: Firkin, volume: str, folder: Path, tmp_path: Path) -> None:
    for target, found in (("work", "/large"), ("work:/d/", "/d/large"), ("work:/d/other", "/d/other")):
        assert firkin("put", str(folder / "large"), target, "--owner", "1000:1001").code == 0
        assert firkin("get", f"work:{found}", str(tmp_path / "copy")).code == 0
        assert (tmp_path / "copy").read_bytes() == (folder / "large").read_bytes()
        assert ((tmp_path / "copy").stat().st_uid, (tmp_path / "copy").stat().st_gid) == (1000, 1001)
    (tmp_path / "into").mkdir()
    assert firkin("get", "work:/d/other", str(tmp_path / "into")).code == 0
    assert [path.name for path in (tmp_path / "into").iterdir()] == ["other"]


def test_a_full_volume_says_so(firkin: Firkin, volume: str, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(b"x" * (200 << 20))
    ended = firkin("put", str(tmp_path / "big"), "work")
    assert ended.code == 1
    assert "the volume is full" in ended.err
    assert firkin("get", "work:/big", str(tmp_path / "none")).code == 2


def test_a_sandbox_is_created_with_it(firkin: Firkin, server: RunningServer, volume: str) -> None:
    where = ("--url", server.url, "--api-key", ALICE)
    assert _run(["sandbox", "create", "--volume", "work:/data:ro", "--volume", "work", *where]) == 2
    assert _run(["sandbox", "create", "--volume", "work:/data:ro", *where]) == 0
    refused = firkin("delete", "work")
    sandbox_id = refused.out.split()[-1]
    assert (refused.code, f"mounted in sandbox {sandbox_id}" in refused.err) == (2, True)
    assert _run(["sandbox", "kill", sandbox_id, *where]) == 0


def test_the_help_speaks_of_every_command(firkin: Firkin, capfd: pytest.CaptureFixture[str]) -> None:
    for command in ("create", "list", "show", "delete", "put", "get"):
        assert _run(["volume", command, "--help"]) == 0
        assert len(capfd.readouterr().out.splitlines()) > 4
