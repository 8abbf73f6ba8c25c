"""E2B's own command line against real sandboxes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import E2b


@pytest.fixture
def sandbox_id(e2b: E2b) -> Iterator[str]:
    made = e2b("sandbox", "create", "--detach", "--timeout", "120", "base")
    assert made.returncode == 0, made.stderr
    name = made.stdout.strip()
    yield name
    e2b("sandbox", "kill", name)


def listed(e2b: E2b, *options: str) -> list[dict[str, Any]]:
    done = e2b("sandbox", "list", "--format", "json", *options)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def test_what_is_created_is_listed_and_described(e2b: E2b, sandbox_id: str) -> None:
    record = next(each for each in listed(e2b) if each["sandboxId"] == sandbox_id)
    assert (record["state"], record["templateId"]) == ("running", "base")
    assert sandbox_id in e2b("sandbox", "list", "--template", "base").stdout
    assert sandbox_id not in e2b("sandbox", "list", "--metadata", "no=such").stdout
    described = json.loads(e2b("sandbox", "info", sandbox_id, "--format", "json").stdout)
    assert described["sandboxId"] == sandbox_id
    assert described["lifecycle"] == {"onTimeout": "kill", "autoResume": False}


def test_exec_passes_input_output_place_user_and_exit_code(e2b: E2b, sandbox_id: str) -> None:
    options = ("--user", "root", "--cwd", "/tmp", "--env", "A=1")
    done = e2b("sandbox", "exec", *options, sandbox_id, "whoami; pwd; echo $A; echo oops >&2; exit 7")
    assert (done.returncode, done.stdout) == (7, "root\n/tmp\n1\n")
    assert "oops" in done.stderr
    assert e2b("sandbox", "exec", sandbox_id, "cat", told="piped\n").stdout == "piped\n"


def test_logs_and_metrics_are_shown(e2b: E2b, sandbox_id: str) -> None:
    logs = e2b("sandbox", "logs", sandbox_id)
    assert logs.returncode == 0, logs.stderr
    assert "running" in logs.stdout
    metrics = e2b("sandbox", "metrics", sandbox_id)
    assert metrics.returncode == 0, metrics.stderr


def test_a_pause_and_a_resume(e2b: E2b, sandbox_id: str) -> None:
    assert e2b("sandbox", "pause", sandbox_id).returncode == 0
    assert [each["sandboxId"] for each in listed(e2b, "--state", "paused")] == [sandbox_id]
    resumed = e2b("sandbox", "resume", sandbox_id)
    assert resumed.returncode == 0, resumed.stderr
    assert e2b("sandbox", "exec", sandbox_id, "echo", "again").stdout == "again\n"


def test_a_snapshot_is_made_listed_and_deleted(e2b: E2b, sandbox_id: str) -> None:
    made = e2b("sandbox", "snapshot", "create", sandbox_id)
    assert made.returncode == 0, made.stderr
    found = json.loads(e2b("sandbox", "snapshot", "list", sandbox_id, "--format", "json").stdout)
    assert len(found) == 1
    name = found[0]["snapshotId"]
    assert e2b("sandbox", "snapshot", "delete", name).returncode == 0


def test_a_dockerfile_becomes_a_template(e2b: E2b, tmp_path: Path) -> None:
    (tmp_path / "hello.txt").write_text("hello\n")
    dockerfile = tmp_path / "Dockerfile"
    dockerfile.write_text('FROM e2bdev/base\nENV A=1\nWORKDIR /srv/app\nCOPY hello.txt .\nRUN echo "$A" >> hello.txt\n')
    made = e2b("template", "create", "cli-built", "--path", str(tmp_path))
    assert made.returncode == 0, made.stderr + made.stdout
    assert "cli-built" in e2b("template", "list").stdout
    name = e2b("sandbox", "create", "--detach", "cli-built").stdout.strip()
    assert e2b("sandbox", "exec", name, "cat", "/srv/app/hello.txt").stdout == "hello\n1\n"
    e2b("sandbox", "kill", name)
    assert "Published" in e2b("template", "publish", "-y", "cli-built").stdout
    assert e2b("template", "delete", "-y", "cli-built").returncode == 0
    assert "cli-built" not in e2b("template", "list").stdout


def test_a_kill_is_told_from_a_kill_of_nothing(e2b: E2b, sandbox_id: str) -> None:
    assert "has been killed" in e2b("sandbox", "kill", sandbox_id).stdout
    assert "wasn't found" in e2b("sandbox", "kill", sandbox_id).stderr
    assert e2b("sandbox", "info", sandbox_id).returncode == 1
    assert sandbox_id not in {each["sandboxId"] for each in listed(e2b)}


def test_a_wrong_key_is_refused(e2b: E2b, monkeypatch: pytest.MonkeyPatch, served: dict[str, str]) -> None:
    monkeypatch.setitem(served, "E2B_API_KEY", "e2b_" + "0" * 40)
    refused = e2b("sandbox", "list")
    assert refused.returncode != 0
    assert "AuthenticationError" in refused.stderr
