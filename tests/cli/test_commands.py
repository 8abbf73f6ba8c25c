"""The command line as a user meets it: exit codes, one-sentence errors, no traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from firkin.bootstrap.state_files import ServerRecord, write_server_record
from firkin.cli.failures import keep_traceback, start_exit_code
from firkin.cli.kernel_checks import kernel_findings, kernel_version
from firkin.cli.main import _run
from firkin.cli.options import Size
from firkin.cli.output import plain
from firkin.cli.remote_process import exit_code
from firkin.cli.sandbox import sandbox
from firkin.cli.snapshot import _called
from firkin.cli.template import absolute_source
from firkin.cli.template_calls import default_id
from firkin.cli.tool_checks import tool_findings

pytestmark = pytest.mark.served


def firkin(
    *args: str, state: Path, stdin: bytes = b"", env: dict[str, str] | None = None, within_s: float = 50
) -> subprocess.CompletedProcess[bytes]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("FIRKIN_", "E2B_"))}
    return subprocess.run(
        [sys.executable, "-m", "firkin.cli.main", *args],
        input=stdin,
        capture_output=True,
        timeout=within_s,
        check=False,
        env={**clean, "FIRKIN_STATE_DIR": str(state), **(env or {})},
    )


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str


@pytest.fixture
def firkin_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Ended]:
    """The command line in this very process: fast, for commands that do not get far."""
    for name in [name for name in os.environ if name.startswith(("FIRKIN_", "E2B_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("FIRKIN_STATE_DIR", str(tmp_path))

    def call(*args: str) -> Ended:
        code = _run(args)
        return Ended(code, *capfd.readouterr())

    return call


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["nope"], "no command is called 'nope'"),
        (["serve", "--port", "x"], "not a valid integer"),
        (["serve", "--port", "70000"], "whole number from 0 to 65535"),
        (["serve", "--api-key", "a"], "8 to 256"),
        (["serve", "--driver-option", "x"], "NAME=VALUE"),
        (["serve", "--config", "/nonexistent.toml"], "does not exist"),
        (["run"], "Missing argument"),
        (["run", "--env", "x", "--", "true"], "NAME=VALUE"),
        (["run", "--memory", "lots", "--", "true"], "is not a size"),
        (["run", "--driver", "memory", "--memory", "1k", "--", "true"], "memory_bytes is 1024"),
        (["run", "--driver", "memory", "--cpus", "0", "--", "true"], "0 is not in the range"),
        (["run", "--driver", "memory", "--timeout", "0", "--", "true"], "not in the range"),
        (["run", "--driver", "memory", "--", ""], "program name is empty"),
        (["run", "--driver", "memory", "--timeout", "nan", "--", "true"], "nan is not a number of the range"),
        (["run", "--driver", "memory", "--timeout", "inf", "--", "true"], "inf is not in the range"),
        (["run", "--driver", "memory", "--timeout", "1e308", "--", "true"], "not in the range"),
        (["template", "prepare", "host", "--timeout", "nan"], "nan is not a number of the range"),
        (["bench", "--threshold", "nan"], "nan is not a number of the range"),
        (["template", "list", "--state-dir", ""], "it is empty"),
        (["template", "list", "--state-dir", "/etc"], "/etc holds other files"),
        (["serve", "--config", ""], "it is empty"),
        (["run", "--driver", "memory", "--user", "", "--", "true"], "it is empty"),
        (["template", "prepare", "host", "--id", ""], "it is empty"),
        (["sandbox", "kill"], "name the sandboxes"),
        (["sandbox", "kill", "../x", "--url", "http://127.0.0.1:9", "--api-key", "k"], "sandbox id"),
        (["sandbox", "list", "--url", "nonsense", "--api-key", "k"], "is not a server's URL"),
        (["sandbox", "list", "--url", "http://127.0.0.1:9"], "needs an API key"),
        (["template", "delete", "a/b", "--driver"], "No such option"),
        (["bench", "--driver", "memory", "--url", "http://x"], "leave it out"),
        (["bench", "--json", "/nonexistent/figures"], "cannot be written"),
        (["bench", "--html", "/nonexistent/page"], "cannot be written"),
        (["bench", "--only", "nothing"], "there are starts, density"),
        (["bench", "--isolation", "paper"], "is not one of"),
        (["bench", "--compare", "/nonexistent/a", "/nonexistent/b"], "cannot be read"),
        (["bench", "--from", "/dev/null"], "is not a report"),
        (["doctor", "--driver", "bogus"], "no driver is called 'bogus'"),
        (["run", "--nope", "true"], "No such option"),
        (["run", "--driver", "memory", "--cwd", "/no/where", "--", "true"], "/no/where"),
        (["run", "--driver", "memory", "--user", "nobody-here", "--", "true"], "nobody-here"),
        (["run", "--driver", "memory", "--json", "--tty", "--", "true"], "cannot be had with --tty"),
        (["sandbox", "exec", "--nope", "id", "true"], "No such option"),
        (["sandbox", "exec", "id", "--cwd", "/", "--", "true"], "comes too late"),
        (["template", "delete", "unknown"], "was not found"),
        (["template", "prepare", "/no/such/folder"], "/no/such/folder"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    tmp_path: Path, firkin_here: Callable[..., Ended], args: list[str], says: str
) -> None:
    done = firkin_here(*args)
    assert says in done.err
    assert done.err.count("\n") == 1
    assert (done.code, done.out) == (2, "")
    assert not list(tmp_path.glob("logs/*"))


def test_serving_with_an_unknown_driver_names_those_that_exist(tmp_path: Path) -> None:
    done = firkin("serve", "--driver", "nope", "--port", "0", state=tmp_path)
    assert done.returncode == 2
    assert b"no driver is called 'nope'; installed are gvisor, memory, namespaces, oci, qemu" in done.stderr


@pytest.mark.parametrize(
    "args", [["env"], ["sandbox", "list"], ["sandbox", "list", "--url", "http://127.0.0.1:9", "--api-key", "k"]]
)
def test_without_a_server_a_command_says_so_and_fails(firkin_here: Callable[..., Ended], args: list[str]) -> None:
    done = firkin_here(*args)
    assert done.code == 1
    assert done.err.count("\n") == 1
    assert "server" in done.err


def test_help_names_every_command_and_loads_none_of_them(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom firkin.cli.main import _run\nassert _run(['--help']) == 0\n"
        "heavy = {'asyncio', 'aiohttp', 'rich', 'firkin.engine', 'starlette', 'uvicorn', 'e2b'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=20, check=False)
    assert done.returncode == 0, done.stderr
    for command in (b"serve", b"env", b"run", b"sandbox", b"template", b"doctor", b"bench"):
        assert command in done.stdout


@pytest.mark.parametrize("command", ["serve", "env", "run", "sandbox", "template", "doctor", "bench"])
def test_every_command_explains_itself(firkin_here: Callable[..., Ended], command: str) -> None:
    done = firkin_here(command, "--help")
    assert done.code == 0
    assert f"Usage: firkin {command}" in done.out


def test_an_unexpected_error_leaves_a_file_and_no_traceback(tmp_path: Path) -> None:
    code = (
        "import firkin.cli.main as main\n"
        "main._COMMANDS['env'] = ('firkin.cli.no_such_module:env', '')\n"
        "main.main(['env'])\n"
    )
    env = {**os.environ, "FIRKIN_STATE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=20, check=False, env=env)
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr
    (kept,) = (tmp_path / "logs").iterdir()
    assert str(kept).encode() in done.stderr
    assert "Traceback" in kept.read_text()
    assert kept.stat().st_mode & 0o077 == 0


def test_run_passes_output_and_exit_code_through(tmp_path: Path) -> None:
    done = firkin("run", "--driver", "memory", "--", "sh", "-c", "echo out; echo err >&2; exit 7", state=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (7, b"out\n", b"err\n")


def test_run_passes_input_through_to_its_end(tmp_path: Path) -> None:
    data = bytes(range(256)) * 4096
    done = firkin("run", "--driver", "memory", "--", "cat", state=tmp_path, stdin=data)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == data


def test_run_honours_environment_and_directory(tmp_path: Path) -> None:
    words = ("run", "--driver", "memory", "-e", "A=b c", "--cwd", "/tmp", "--", "sh", "-c", "echo $A; pwd")
    done = firkin(*words, state=tmp_path)
    assert done.stdout == b"b c\n/tmp\n"


def test_run_leaves_nothing_behind(tmp_path: Path) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    done = firkin("run", "--driver", "memory", "--", "true", state=tmp_path / "state", env={"TMPDIR": str(temporary)})
    assert done.returncode == 0
    assert not list(temporary.iterdir())
    assert not (tmp_path / "state").exists()


def test_run_times_out_with_124(tmp_path: Path) -> None:
    done = firkin("run", "--driver", "memory", "--timeout", "0.2", "--", "sleep", "60", state=tmp_path)
    assert done.returncode == 124


def test_a_program_that_does_not_exist_ends_with_127_and_one_sentence(tmp_path: Path) -> None:
    done = firkin("run", "--driver", "memory", "--", "no-such-program", state=tmp_path)
    assert done.returncode == 127
    assert done.stderr.count(b"\n") == 1
    assert b"no-such-program" in done.stderr


@pytest.mark.parametrize(
    ("sentence", "code"),
    [
        ("'x' was not found on PATH", 127),
        ("'/x' does not exist", 127),
        ('"it\'s" was not found on PATH', 127),
        ("there is no program 'x'", 127),
        ("'/etc': Permission denied", 126),
        ("cwd '/x' does not exist", None),
        ("invalid username: 'x'", None),
    ],
)
def test_what_an_agent_says_of_a_program_becomes_a_shells_number(sentence: str, code: int | None) -> None:
    assert start_exit_code(sentence) == code


def test_run_answers_with_one_json_object_at_the_end(tmp_path: Path) -> None:
    script = "echo out; printf '\\377' >&2; exit 3"
    done = firkin("run", "--driver", "memory", "--json", "--", "sh", "-c", script, state=tmp_path)
    answer = json.loads(done.stdout)
    assert (done.returncode, answer["exit_code"], done.stderr) == (3, 3, b"")
    assert answer["sandbox_id"]
    assert (answer["stdout"], answer["stdout_encoding"]) == ("out\n", "utf-8")
    assert (answer["stderr"], answer["stderr_encoding"]) == ("/w==", "base64")
    assert answer["truncated"] is False


@pytest.mark.parametrize("command", ["--help", "run --driver memory -- echo hi", "run --driver memory --json -- true"])
@pytest.mark.parametrize(("target", "why"), [(">/dev/full", "No space left on device"), (">&-", "Bad file descriptor")])
def test_output_that_cannot_be_written_is_one_sentence_and_no_log(
    tmp_path: Path, command: str, target: str, why: str
) -> None:
    env = {**os.environ, "FIRKIN_STATE_DIR": str(tmp_path / "state")}
    line = f"{sys.executable} -m firkin.cli.main {command} {target}"
    done = subprocess.run(["sh", "-c", line], stdin=subprocess.DEVNULL, capture_output=True, timeout=50, env=env)
    assert (done.returncode, done.stderr.decode()) == (1, f"firkin: the output cannot be written: {why}\n")
    assert not (tmp_path / "state").exists()


def test_a_named_state_folder_gets_the_details_of_an_unexpected_error(tmp_path: Path) -> None:
    said = keep_traceback(RuntimeError("x"), ["env", "--state-dir", str(tmp_path / "a"), "--", "--state-dir=b"])
    (kept,) = (tmp_path / "a/logs").iterdir()
    assert str(kept) in said


@pytest.mark.parametrize(("host", "code"), [("300.1.1.1", 2), ("192.0.2.1", 2)])
def test_serving_on_an_address_of_no_use_is_refused_before_any_state_is_made(
    tmp_path: Path, firkin_here: Callable[..., Ended], host: str, code: int
) -> None:
    folder = tmp_path / "state"
    done = firkin_here("serve", "--driver", "memory", "--host", host, "--port", "0", "--state-dir", str(folder))
    assert done.code == code
    assert host in done.err
    assert not folder.exists()


def test_the_record_of_a_killed_server_counts_as_none(tmp_path: Path, firkin_here: Callable[..., Ended]) -> None:
    with subprocess.Popen(["true"]) as gone:
        pass
    record = ServerRecord(
        url="http://127.0.0.1:9", pid=gone.pid, api_key="e2b_00000000", domain="", driver="memory", version=""
    )
    write_server_record(tmp_path, record)
    for more in ([], ["--url", record.url, "--api-key", record.api_key]):
        done = firkin_here("sandbox", "list", *more)
        assert (done.code, done.out) == (1, "")
        assert "start one with: firkin serve" in done.err


def test_a_refused_connection_is_told_in_the_systems_words(firkin_here: Callable[..., Ended]) -> None:
    done = firkin_here("sandbox", "list", "--url", "http://127.0.0.1:9", "--api-key", "k")
    assert "Connection refused" in done.err
    assert "ssl" not in done.err


def test_plain_benchmarks_take_every_figure() -> None:
    from firkin.cli.bench.command import bench

    defaults = {option.name: option.default for option in bench.params}
    assert {name: defaults[name] for name in ("n", "burst", "idle", "alive", "cycles")} == {
        "n": 100,
        "burst": 100,
        "idle": 200,
        "alive": 1000,
        "cycles": 2000,
    }


def test_doctor_lists_every_tier(tmp_path: Path) -> None:
    done = firkin("doctor", "--driver", "namespaces", "--no-probe", "--json", state=tmp_path)
    findings = {each["name"]: each for each in json.loads(done.stdout)["findings"]}
    for tier in ("microvm", "gvisor", "oci"):
        found = findings[f"tier {tier}"]
        assert found["status"] in ("ok", "degraded")
        assert found["status"] == "ok" or found["mend"]


@pytest.mark.parametrize(("option", "says"), [("qemu.accelerator=tcg", ""), ("qemu.nope=1", "has no option 'nope'")])
def test_doctor_reads_options_as_the_server_does(tmp_path: Path, option: str, says: str) -> None:
    variables = {"FIRKIN_DRIVER_OPTIONS": option}
    done = firkin("doctor", "--driver", "namespaces", "--no-probe", "--json", state=tmp_path, env=variables)
    told = [each["detail"] for each in json.loads(done.stdout)["findings"] if "has no option" in each["detail"]]
    assert [says in detail for detail in told] == ([True] if says else [])


def test_doctor_answers_in_json_and_boots_a_sandbox(tmp_path: Path) -> None:
    done = firkin("doctor", "--driver", "memory", "--json", state=tmp_path)
    answer = json.loads(done.stdout)
    assert done.returncode == 0
    assert answer["ready"] is True
    findings = {each["name"]: each for each in answer["findings"]}
    assert findings["probe"]["status"] == "ok"
    assert all(each["why"] for each in answer["findings"])
    assert all(each["mend"] for each in answer["findings"] if each["status"] != "ok")


@pytest.mark.parametrize(
    ("text", "size"), [("0", 0), ("512", 512), ("512m", 512 << 20), ("2G", 2 << 30), ("1KiB", 1024), ("1t", 1 << 40)]
)
def test_sizes_are_read_with_their_unit(text: str, size: int) -> None:
    assert Size().convert(text, None, None) == size


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ({"exitCode": 3, "exited": True, "status": "exit status 3"}, 3),
        ({"status": "exit status 0", "exited": True}, 0),
        ({"exitCode": -1, "exited": False, "status": "signal: killed"}, 137),
        ({"exitCode": -1, "status": "signal: terminated"}, 143),
        ({"exitCode": -1, "status": "signal: segmentation fault (core dumped)"}, 139),
        ({"exitCode": -1, "status": "signal 34"}, 162),
    ],
)
def test_an_end_event_becomes_a_shells_number(end: dict[str, object], code: int) -> None:
    assert exit_code(end) == code


def test_guest_text_cannot_steer_the_terminal() -> None:
    assert plain("a\x1b[2Jb\n") == "a\\x1b[2Jb\\x0a"


def test_file_names_of_sources_are_made_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute_source("./root") == f"local:{tmp_path}/root"
    assert absolute_source("oci:./layout:tag") == f"oci:{tmp_path}/layout:tag"
    assert absolute_source("debian:12") == "debian:12"
    assert absolute_source("lay2") == "lay2"
    (tmp_path / "lay2").mkdir()
    (tmp_path / "r.tgz").write_text("")
    assert absolute_source("lay2") == f"local:{tmp_path}/lay2"
    assert absolute_source("r.tgz") == f"local:{tmp_path}/r.tgz"
    (tmp_path / "lay2/oci-layout").write_text("{}")
    assert absolute_source("lay2") == f"oci:{tmp_path}/lay2"
    for kind in ("local", "oci", "oci-archive", "docker-archive"):
        assert absolute_source(f"{kind}:a/b:tag") == f"{kind}:{tmp_path}/a/b:tag"
        assert absolute_source(f"{kind}:/a") == f"{kind}:/a"


def test_a_template_id_is_made_from_its_source() -> None:
    assert default_id("debian:12") == "debian-12"
    assert default_id("local:/srv/root") == "local--srv-root"


@pytest.mark.parametrize(("text", "version"), [("6.18.44-x", (6, 18)), ("5.4", (5, 4)), ("strange", (0, 0))])
def test_a_kernel_release_has_two_numbers(text: str, version: tuple[int, int]) -> None:
    assert kernel_version(text) == version


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("a/n:v1", ["s1"]),
        ("n:v1", ["s1", "s2"]),
        ("b/n:v1", ["s2"]),
        ("c/n:v1", []),
        ("a/n", []),
        ("s3:default", ["s3"]),
        ("a/s3:default", []),
    ],
)
def test_a_snapshots_name_means_those_that_have_it(text: str, ids: list[str]) -> None:
    rows = [("s1", "n:v1", "A"), ("s2", "n:v1", "b"), ("s3", None, "a")]
    assert _called(text, [dict(zip(("id", "name", "owner"), row, strict=True)) for row in rows]) == ids


def test_doctor_speaks_of_no_tier_as_one_to_come() -> None:
    told = [f"{each.why} {each.mend}" for each in (*kernel_findings(), *tool_findings())]
    assert not [text for text in told if "not offered yet" in text or "none needed" in text]


def test_create_names_a_lifetime_only_when_asked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, Any]] = []

    def answer(where: Any, method: str, path: str, *, body: Any) -> dict[str, str]:
        asked.append((path, body))
        return {"sandboxID": "made"}

    monkeypatch.setattr("firkin.cli.sandbox.call", answer)
    for words, timeout in (([], None), (["--timeout", "60"], 60)):
        done = CliRunner().invoke(sandbox, ["create", *words])
        assert (done.exit_code, done.output) == (0, "made\n"), done.output
        path, body = asked.pop()
        assert (path, body.get("timeout")) == ("/v2/sandboxes", timeout)
        assert ("timeout" in body) == (timeout is not None)
