"""Templates built with the official SDK over real sandboxes: what the memory driver passes, and what needs a kernel."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from e2b import BuildException, Sandbox, Template, wait_for_port
from tests.e2b.conftest import ALICE, RunningServer, in_a_thread
from tests.e2b.test_builds import *  # noqa: F403 — the tests themselves are what is wanted
from tests.namespaces.conftest import backend_at


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    state_dir = tmp_path_factory.mktemp("state")
    with in_a_thread(lambda: backend_at(state_dir)) as running:
        yield running


@pytest.fixture
def context(tmp_path: Path) -> Path:
    """A folder to copy from: a script, a folder in a folder, links that lead in and out."""
    (tmp_path / "app/inner").mkdir(parents=True)
    (tmp_path / "app/run.sh").write_text("#!/bin/sh\necho ran\n")
    (tmp_path / "app/run.sh").chmod(0o755)
    (tmp_path / "app/inner/data").write_text("data")
    (tmp_path / "app/.hidden").write_text("hidden")
    (tmp_path / "one.txt").write_text("one")
    (tmp_path / "two.txt").write_text("two")
    os.symlink("one.txt", tmp_path / "link.txt")
    os.symlink("/etc/shadow", tmp_path / "out.txt")
    return tmp_path


def shown(to: dict[str, str], template: str, command: str, user: str | None = None) -> list[str]:
    sandbox = Sandbox.create(template, **to)  # type: ignore[arg-type]
    try:
        return sandbox.commands.run(command, user=user).stdout.splitlines()
    finally:
        sandbox.kill()


def test_copies_are_merged_as_docker_does(to: dict[str, str], context: Path) -> None:
    template = (
        Template(file_context_path=str(context))
        .from_base_image()
        .copy("app", "/srv/app")
        .copy("one.txt", "/srv/renamed")
        .copy("two.txt", "/srv/folder/")
        .copy("*.txt", "/srv/all/", user="root", mode=0o600)
        .set_workdir("/srv/app")
        .copy("one.txt", "inner")
        .copy(".", "/srv/everything")
    )
    Template.build(template, "copies", **to)  # type: ignore[arg-type]
    look = "cd /srv; find app folder all -printf '%p %M %u\\n' | sort; cat renamed folder/two.txt; ls -A everything"
    assert shown(to, "copies", look, user="root") == [
        "all drwxr-xr-x root",
        "all/link.txt lrwxrwxrwx root",
        "all/one.txt -rw------- root",
        "all/out.txt lrwxrwxrwx root",
        "all/two.txt -rw------- root",
        "app drwxr-xr-x user",
        "app/.hidden -rw-r--r-- user",
        "app/inner drwxr-xr-x user",
        "app/inner/data -rw-r--r-- user",
        "app/inner/one.txt -rw-r--r-- user",
        "app/run.sh -rwxr-xr-x user",
        "folder drwxr-xr-x user",
        "folder/two.txt -rw-r--r-- user",
        "onetwoapp",
        "link.txt",
        "one.txt",
        "out.txt",
        "two.txt",
    ]


def test_users_folders_and_variables_persist(to: dict[str, str]) -> None:
    template = (
        Template()
        .from_base_image()
        .set_envs({"PLACE": "/opt/work"})
        .set_user("builder")
        .set_workdir("/opt/work")
        .run_cmd("id -un > who; pwd >> who; echo $PLACE >> who")
        .run_cmd("touch /root/mark", user="root")
    )
    Template.build(template, "users", **to)  # type: ignore[arg-type]
    assert shown(to, "users", "cat who; id -un; pwd; echo $PLACE") == [
        *("builder", "/opt/work", "/opt/work"),
        *("builder", "/opt/work", "/opt/work"),
    ]


def test_what_a_step_removes_is_gone_and_what_it_replaces_is_new(to: dict[str, str]) -> None:
    template = (
        Template()
        .from_base_image()
        .run_cmd("mkdir -p /srv/a/b && touch /srv/a/b/c /srv/gone", user="root")
        .run_cmd("rm -r /srv/a /srv/gone && mkdir /srv/a && touch /srv/a/new", user="root")
    )
    Template.build(template, "removed", **to)  # type: ignore[arg-type]
    assert shown(to, "removed", "find /srv | sort") == ["/srv", "/srv/a", "/srv/a/new"]


def test_a_service_answers_as_soon_as_a_sandbox_is_there(to: dict[str, str], server: RunningServer) -> None:
    template = Template().from_base_image().run_cmd("echo page > ~/index.html")
    final = template.set_start_cmd("python3 -m http.server 8000", wait_for_port(8000))
    Template.build(final, "service", **to)  # type: ignore[arg-type]
    sandbox = Sandbox.create("service", **to)  # type: ignore[arg-type]
    try:
        headers = {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": "8000"}
        assert httpx.get(f"{server.url}/index.html", headers=headers).text == "page\n"
        assert any("http.server" in " ".join(process.args) for process in sandbox.commands.list())
        twins = sandbox.fork(count=1)
        twin = twins[0].sandbox if hasattr(twins[0], "sandbox") else twins[0]
        headers["E2b-Sandbox-Id"] = twin.sandbox_id
        assert httpx.get(f"{server.url}/index.html", headers=headers).text == "page\n", (
            "a fork boots, and starts it too"
        )
        twin.kill()
    finally:
        sandbox.kill()


def test_a_ready_command_that_never_succeeds_says_what_it_said(to: dict[str, str]) -> None:
    template = Template().from_base_image().set_start_cmd("echo failing >&2; exit 5", "false")
    with pytest.raises(BuildException, match="the start command ended before it was ready: exit status 5"):
        Template.build(template, "never", **to)  # type: ignore[arg-type]


def test_memory_that_runs_out_in_a_step_is_called_so(to: dict[str, str]) -> None:
    template = Template().from_base_image().run_cmd("python3 -c \"x = 'x' * 10**9\"")
    with pytest.raises(BuildException, match="out of memory"):
        Template.build(template, "hungry", memory_mb=128, **to)  # type: ignore[arg-type]


def test_a_template_on_a_template(to: dict[str, str]) -> None:
    Template.build(Template().from_base_image().run_cmd("echo below > ~/below"), "below", **to)  # type: ignore[arg-type]
    Template.build(Template().from_template("below").run_cmd("echo above > ~/above"), "above", **to)  # type: ignore[arg-type]
    assert shown(to, "above", "cat ~/below ~/above") == ["below", "above"]
    httpx.delete(f"{server_url(to)}/templates/below", headers={"X-API-Key": ALICE}).raise_for_status()
    assert shown(to, "above", "cat ~/below") == ["below"]


def server_url(to: dict[str, str]) -> str:
    return to["api_url"]
