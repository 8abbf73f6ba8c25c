"""The official SDK on every tier of one real server: one life of a sandbox, whatever holds it in.

What differs is told apart by the server's own word: where a tier's snapshots are
continuations, programs go on in what is made of them; elsewhere files alone do.
"""

from __future__ import annotations

import signal
import time
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from e2b.exceptions import NotFoundException, SandboxNotFoundException, TimeoutException
from e2b.sandbox.commands.command_handle import CommandExitException, PtySize

from e2b import Sandbox
from firkin.drivers.gvisor.choice import runsc
from tests.e2b.lives import made, until

from .served import READINESS, TIERS, Served

pytestmark = [
    pytest.mark.host,
    pytest.mark.timeout(180),
    pytest.mark.skipif(not READINESS.ready, reason="; ".join(READINESS.reasons) or "ready"),
    pytest.mark.filterwarnings("default::DeprecationWarning"),
]

CONTINUES = {"microvm"}

# Its state is in its memory alone: how far it has counted, and a number that it drew when it began.
COUNTER = """
import os, time
drawn, count = os.urandom(8).hex(), 0
while True:
    count += 1
    with open("/tmp/now.new", "w") as file:
        file.write(f"{drawn} {count}")
    os.rename("/tmp/now.new", "/tmp/now")
    time.sleep(0.1)
"""


def started_counter(sandbox: Sandbox) -> str:
    sandbox.commands.run(f"exec python3 -c '{COUNTER}'", background=True, timeout=0)
    until(lambda: sandbox.files.exists("/tmp/now"))
    return now(sandbox)[0]


def now(sandbox: Sandbox) -> tuple[str, int]:
    drawn, count = str(sandbox.files.read("/tmp/now")).split()
    return drawn, int(count)


def goes_on(sandbox: Sandbox, drawn: str) -> None:
    same, count = now(sandbox)
    assert same == drawn
    until(lambda: now(sandbox)[1] > count)


def stands_still(sandbox: Sandbox) -> None:
    before = now(sandbox)
    time.sleep(0.3)  # that nothing happens in it is what is tried
    assert (now(sandbox), sandbox.commands.list()) == (before, [])


def test_commands_input_and_files(sandbox: Sandbox) -> None:
    assert sandbox.commands.run("echo $A; pwd; whoami", envs={"A": "1"}).stdout == "1\n/home/user\nuser\n"
    with pytest.raises(CommandExitException) as failed:
        sandbox.commands.run("echo oops >&2; exit 3")
    assert (failed.value.exit_code, failed.value.stderr) == (3, "oops\n")
    handle = sandbox.commands.run("cat", background=True, stdin=True, timeout=20)
    sandbox.commands.send_stdin(handle.pid, "abc\n")
    sandbox.commands.close_stdin(handle.pid)
    assert handle.wait().stdout == "abc\n"
    sandbox.files.write("/home/user/deep/note", "hello")
    sandbox.files.write("/home/user/deep/large", bytes(range(256)) * 4096)
    assert sandbox.files.read("/home/user/deep/note") == "hello"
    assert bytes(sandbox.files.read("/home/user/deep/large", format="bytes")) == bytes(range(256)) * 4096
    assert sorted(entry.name for entry in sandbox.files.list("/home/user/deep")) == ["large", "note"]
    sandbox.files.remove("/home/user/deep/note")
    assert not sandbox.files.exists("/home/user/deep/note")


def test_it_knows_who_it_is_and_not_what_it_stood_in_for(sdk: dict[str, Any]) -> None:
    for _ in range(3):  # one of them was ready before it was asked for
        with made(sdk) as sandbox:
            assert sandbox.files.read("/run/e2b/.E2B_SANDBOX_ID") == sandbox.sandbox_id
            told = sandbox.commands.run("cat /run/e2b/.E2B_TEMPLATE_ID; echo; echo $E2B_TEMPLATE_ID; hostname").stdout
            template, same, hostname = told.splitlines()
            assert (template, hostname) == (same, sandbox.sandbox_id)


def test_a_terminal_has_a_size_and_ends_with_its_shell(sandbox: Sandbox, tier: str) -> None:
    said: list[bytes] = []
    terminal = sandbox.pty.create(PtySize(rows=33, cols=99), timeout=20)
    if tier == "gvisor" and runsc().warning:  # it ends readline at once, but must not keep anybody waiting
        terminal.wait(on_pty=said.append)
        assert b"logout" in b"".join(said)
        return
    sandbox.pty.send_stdin(terminal.pid, b"stty size; exit\n")
    terminal.wait(on_pty=said.append)
    assert b"33 99" in b"".join(said)


def test_what_holds_it_in_is_told_and_what_it_uses_is_measured(sandbox: Sandbox, http: httpx.Client, tier: str) -> None:
    facts = http.get(f"/firkin/v1/sandboxes/{sandbox.sandbox_id}/isolation").json()
    assert facts["tier"] == tier
    assert set(facts["unread"]) == {name for name, value in facts.items() if value is None}
    assert facts["seccomp"] == "filter"
    assert facts["limits"]
    if tier == "microvm":
        assert (facts["accelerator"], facts["capabilities"]) == ("tcg", {"effective": [], "bounding": []})
        assert facts["kernel_release"] == sandbox.commands.run("uname -r").stdout.strip()
    until(lambda: bool(sandbox.get_metrics()))
    last = sandbox.get_metrics()[-1]
    assert (last.cpu_count, last.mem_total, last.disk_total) == (1, 256 << 20, 96 << 20)
    assert last.mem_used > 0
    assert 0 < last.disk_used <= last.disk_total


def test_a_program_goes_on_where_a_pause_stopped_it(sdk: dict[str, Any]) -> None:
    with made(sdk, lifecycle={"on_timeout": "pause", "auto_resume": True}) as sandbox:
        drawn = started_counter(sandbox)
        sandbox.pause()
        assert sandbox.get_info().state.value == "paused"
        sandbox.connect(timeout=60)
        goes_on(sandbox, drawn)
        sandbox.set_timeout(0)
        until(lambda: sandbox.get_info().state.value == "paused")
        goes_on(sandbox, drawn)  # traffic wakes it


def test_snapshots_and_forks_are_what_the_tier_calls_them(
    sdk: dict[str, Any], sandbox: Sandbox, http: httpx.Client, tier: str
) -> None:
    drawn = started_counter(sandbox)
    snapshot = sandbox.create_snapshot().snapshot_id
    record = http.get(f"/firkin/v1/snapshots/{snapshot.partition(':')[0]}").json()
    continues = tier in CONTINUES
    assert (record["kind"], record["isolation"]) == ("continuation" if continues else "filesystem", tier)
    forks = sandbox.fork(count=2, timeout=60)
    with made(sdk, snapshot) as clone:
        for copy in (clone, *forks):
            assert isinstance(copy, Sandbox), copy
            if continues:
                goes_on(copy, drawn)
            else:
                stands_still(copy)
            assert copy.commands.run("hostname").stdout.strip() == copy.sandbox_id
    goes_on(sandbox, drawn)
    for fork in forks:
        assert isinstance(fork, Sandbox)
        assert fork.kill()
    assert Sandbox.delete_snapshot(snapshot, **sdk)


def test_its_time_ends_it_and_what_it_runs(sdk: dict[str, Any]) -> None:
    sandbox = Sandbox.create("base", timeout=60, **sdk)
    waiting = sandbox.commands.run("sleep 100", background=True, timeout=0)
    sandbox.set_timeout(1)
    with pytest.raises((TimeoutException, NotFoundException)):
        waiting.wait()
    until(lambda: not sandbox.is_running())
    with pytest.raises(SandboxNotFoundException):
        sandbox.connect()


def test_sandboxes_outlive_a_killed_server(served: Served) -> None:
    tiers = [tier for tier in TIERS if not served.lacking(tier)]
    with ExitStack() as lives:
        running = {tier: lives.enter_context(made(served.sdk(tier))) for tier in tiers}
        paused = {tier: lives.enter_context(made(served.sdk(tier))) for tier in tiers}
        laid = {tier: lives.enter_context(made(served.sdk(tier))) for tier in tiers if tier in CONTINUES}
        drawn = {box.sandbox_id: started_counter(box) for box in (*running.values(), *paused.values())}
        for box in laid.values():
            box.files.write("/home/user/kept", "kept")
            box.pause(keep_memory=False)
        for box in paused.values():
            box.pause()
        served.end(signal.SIGKILL)
        served.start()
        for box in running.values():
            goes_on(box, drawn[box.sandbox_id])
            assert box.commands.run("echo well").stdout == "well\n"
        for box in paused.values():
            assert box.get_info().state.value == "paused"
            box.connect(timeout=60)
            goes_on(box, drawn[box.sandbox_id])
        for box in laid.values():
            box.connect(timeout=60)
            assert box.files.read("/home/user/kept") == "kept"


@pytest.mark.slow
def test_a_template_of_microvms_is_started_once_in_each_line_of_clones(
    served: Served, http: httpx.Client, microvm: dict[str, Any]
) -> None:
    start = "echo began >> /tmp/starts; exec sleep 1000"
    prepare = ("template", "prepare", "template:base", "--id", "hard", "--isolation", "microvm")
    served.firkin(*prepare, "--start", start, "--ready", "test -s /tmp/starts")
    with made(served.sdk(), "hard") as sandbox:
        assert http.get(f"/firkin/v1/sandboxes/{sandbox.sandbox_id}/isolation").json()["tier"] == "microvm"
        assert sandbox.files.read("/tmp/starts") == "began\n"
        (fork,) = sandbox.fork(count=1, timeout=60)
        assert isinstance(fork, Sandbox)
        assert fork.files.read("/tmp/starts") == "began\n"
        assert "1000" in fork.commands.run("ps -eo args | grep [s]leep").stdout
        fork.kill()


def test_a_machine_travels_in_an_archive_and_an_altered_one_is_refused(
    http: httpx.Client, microvm: dict[str, Any]
) -> None:
    with made(microvm) as source:
        drawn = started_counter(source)
        snapshot = source.create_snapshot().snapshot_id
    path = f"/firkin/v1/snapshots/{snapshot.partition(':')[0]}"
    owner = http.get(path).json()["owner"]
    archive = http.get(f"{path}/archive")
    assert http.delete(path).status_code == 204
    announced = {name: value for name, value in archive.headers.items() if name.startswith("x-firkin-")}
    headers = {"content-type": archive.headers["content-type"]}
    altered = bytearray(archive.content)
    altered[len(altered) // 2] ^= 1
    refused = http.put("/firkin/v1/snapshots/altered/archive", content=bytes(altered), headers=headers)
    assert (refused.status_code // 100, "damaged" in refused.text) == (4, True), refused.text
    assert http.get("/firkin/v1/snapshots/altered").status_code == 404
    arrived = f"/firkin/v1/snapshots/arrived/archive?owner={owner}"
    whole = http.put(arrived, content=archive.content, headers={**headers, **announced})
    assert (whole.status_code, whole.json()["kind"]) == (201, "continuation"), whole.text
    with made(microvm, "arrived") as clone:
        goes_on(clone, drawn)
    assert http.delete("/firkin/v1/snapshots/arrived").status_code == 204
