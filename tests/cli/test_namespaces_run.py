"""The command line over real sandboxes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.test_commands import firkin

pytestmark = [pytest.mark.host, pytest.mark.skipif(os.geteuid() != 0, reason="the namespaces driver needs root")]


def test_run_gives_a_fresh_machine_and_passes_everything_through(tmp_path: Path) -> None:
    script = "id -u; cat; ls -A /home; exit 5"
    done = firkin("run", "--user", "root", "--", "sh", "-c", script, state=tmp_path, stdin=b"input\n")
    assert (done.returncode, done.stdout) == (5, b"0\ninput\nuser\n"), done.stderr


def test_doctor_boots_a_sandbox_of_the_driver_that_it_examined(tmp_path: Path) -> None:
    done = firkin("doctor", "--driver", "namespaces", "--json", state=tmp_path)
    findings = {each["name"]: each for each in json.loads(done.stdout)["findings"]}
    assert findings["probe"]["status"] == "ok", findings["probe"]


def test_a_signal_inside_becomes_128_and_its_number(tmp_path: Path) -> None:
    assert firkin("run", "--", "sh", "-c", "kill -9 $$", state=tmp_path).returncode == 137


def test_the_second_interrupt_ends_a_command_whose_child_lives_on(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "firkin.cli.main", "run", "--", "sh", "-c", "trap '' INT; echo up; sleep 77; true"]
    env = {**os.environ, "TMPDIR": str(tmp_path), "FIRKIN_STATE_DIR": str(tmp_path / "state")}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(argv, env=env, **pipes) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)  # two that come at once are one
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=30) == (b"", b"")
    assert process.returncode == 137
    assert not list(tmp_path.glob("firkin-run-*"))


def test_limits_on_the_command_line_hold_inside(tmp_path: Path) -> None:
    hungry = "print(len(bytearray(400 << 20)))"
    done = firkin("run", "--memory", "64m", "--", "python3", "-c", hungry, state=tmp_path)
    assert done.returncode != 0
    assert b"419430400" not in done.stdout


def test_the_next_run_ends_what_a_killed_one_left(tmp_path: Path) -> None:
    env = {**os.environ, "TMPDIR": str(tmp_path), "FIRKIN_STATE_DIR": str(tmp_path / "state")}
    argv = [sys.executable, "-m", "firkin.cli.main", "run", "--", "sh", "-c", "echo up; sleep 77777"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.send_signal(signal.SIGKILL)
    (left,) = tmp_path.glob("firkin-run-*")
    old = time.time() - 3600
    os.utime(left, (old, old))
    done = firkin("run", "--", "true", state=tmp_path / "state", env={"TMPDIR": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.glob("firkin-run-*"))
    assert b"77777" not in b"".join(_command_lines())


def _command_lines() -> list[bytes]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes())
        except OSError:
            continue
    return found
