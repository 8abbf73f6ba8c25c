"""The official SDK, synchronous, against the real server."""

from __future__ import annotations

import time
from collections.abc import Iterator

import httpx
import pytest
from e2b.exceptions import (
    AuthenticationException,
    FileNotFoundException,
    InvalidArgumentException,
    NotFoundException,
    RateLimitException,
    SandboxException,
    TimeoutException,
)
from e2b.sandbox.commands.command_handle import CommandExitException, PtySize
from e2b.sandbox.sandbox_api import SandboxQuery

from e2b import Sandbox

from .conftest import BOB, RunningServer

pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning")


@pytest.fixture
def sandbox(server: RunningServer) -> Iterator[Sandbox]:
    made = Sandbox.create("base", timeout=120, metadata={"who": "sync"}, envs={"A": "1"}, **server.sdk())
    yield made
    made.kill()


def test_a_command_streams_its_output_and_tells_how_it_ended(sandbox: Sandbox) -> None:
    seen: list[str] = []
    done = sandbox.commands.run("echo hello; echo $A", on_stdout=seen.append)
    assert done.exit_code == 0
    assert done.stdout == "hello\n1\n"
    assert "".join(seen) == "hello\n1\n"
    with pytest.raises(CommandExitException) as failed:
        sandbox.commands.run("echo oops >&2; exit 3")
    assert failed.value.exit_code == 3
    assert failed.value.stderr == "oops\n"


def test_commands_take_directory_environment_and_user(sandbox: Sandbox) -> None:
    done = sandbox.commands.run("pwd; echo $B; whoami", cwd="/tmp", envs={"B": "2"}, user="root")
    assert done.stdout == "/tmp\n2\nroot\n"
    with pytest.raises(InvalidArgumentException, match="cwd '/nowhere' does not exist"):
        sandbox.commands.run("pwd", cwd="/nowhere")
    with pytest.raises(AuthenticationException, match="invalid username: 'nobody-here'"):
        sandbox.commands.run("pwd", user="nobody-here")


def test_a_background_command_takes_input_signals_and_a_second_reader(sandbox: Sandbox) -> None:
    handle = sandbox.commands.run("cat", background=True, stdin=True)
    assert [process.pid for process in sandbox.commands.list()] == [handle.pid]
    sandbox.commands.send_stdin(handle.pid, "abc\n")
    sandbox.commands.close_stdin(handle.pid)
    assert handle.wait().stdout == "abc\n"
    sleeper = sandbox.commands.run("sleep 60", background=True)
    again = sandbox.commands.connect(sleeper.pid)
    assert sandbox.commands.kill(sleeper.pid) is True
    with pytest.raises(CommandExitException) as killed:
        again.wait()
    assert killed.value.exit_code == -1
    assert killed.value.error == "signal: killed"
    assert sandbox.commands.kill(999_999) is False


def test_input_is_streamed_over_one_request(sandbox: Sandbox) -> None:
    handle = sandbox.commands.run("cat", background=True, stdin=True)
    sandbox.commands.stream_input(handle.pid, (f"line {n}\n" for n in range(50)))
    sandbox.commands.stream_input(handle.pid, [b"bytes\n"])
    sandbox.commands.close_stdin(handle.pid)
    assert handle.wait().stdout == "".join(f"line {n}\n" for n in range(50)) + "bytes\n"
    with pytest.raises(NotFoundException):
        sandbox.commands.stream_input(999_999, ["x"])


@pytest.mark.thorough
def test_input_that_nobody_reads_ends_with_the_clients_deadline(sandbox: Sandbox) -> None:
    handle = sandbox.commands.run("sleep 60", background=True, stdin=True)
    with pytest.raises(TimeoutException):
        sandbox.commands.stream_input(handle.pid, ["x" * 1_000_000], timeout=0.3)
    assert handle.kill() is True


@pytest.mark.thorough
def test_a_command_that_takes_too_long_is_a_timeout(sandbox: Sandbox) -> None:
    with pytest.raises(TimeoutException):
        sandbox.commands.run("sleep 60", timeout=0.5)
    assert sandbox.commands.run("echo alive").stdout == "alive\n"


def test_a_terminal_talks_and_is_resized(sandbox: Sandbox) -> None:
    terminal = sandbox.pty.create(PtySize(rows=24, cols=80))
    sandbox.pty.resize(terminal.pid, PtySize(rows=40, cols=100))
    sandbox.pty.send_stdin(terminal.pid, b"exit\n")
    assert terminal.wait().exit_code == 0


def test_files_are_written_read_listed_moved_and_removed(sandbox: Sandbox) -> None:
    files = sandbox.files
    written = files.write("notes/a.txt", "hello")
    assert written.path == "/home/user/notes/a.txt"
    assert files.read("notes/a.txt") == "hello"
    assert files.read("/home/user/notes/a.txt", format="bytes") == bytearray(b"hello")
    info = files.get_info("notes/a.txt")
    assert (info.name, info.size, info.permissions, info.owner) == ("a.txt", 5, "-rw-r--r--", "user")
    assert files.make_dir("notes/deep/er") is True
    assert files.make_dir("notes/deep/er") is False
    assert [entry.name for entry in files.list("notes")] == ["a.txt", "deep"]
    assert [entry.name for entry in files.list("notes", depth=2)] == ["a.txt", "deep", "er"]
    assert files.rename("notes/a.txt", "notes/b.txt").path == "/home/user/notes/b.txt"
    assert files.exists("notes/a.txt") is False
    files.remove("notes/b.txt")
    files.remove("notes/b.txt")
    with pytest.raises(FileNotFoundException):
        files.read("notes/b.txt")
    with pytest.raises(InvalidArgumentException, match="is a directory"):
        files.read("notes")
    with pytest.raises(InvalidArgumentException, match="not a directory"):
        files.list("/etc/passwd")


def test_uploads_work_in_every_form(sandbox: Sandbox) -> None:
    files = sandbox.files
    many = files.write_files([{"path": "m/1", "data": "one"}, {"path": "m/2", "data": b"two"}])
    assert [entry.path for entry in many] == ["/home/user/m/1", "/home/user/m/2"]
    big = bytes(range(256)) * 8192
    files.write("big", big, use_octet_stream=True)
    assert files.read("big", format="bytes") == big
    files.write("packed", big, gzip=True)
    assert files.read("packed", format="bytes", gzip=True) == big
    assert b"".join(files.read("packed", format="stream")) == big
    files.write("tagged", "x", metadata={"Author": "me"})
    assert files.get_info("tagged").metadata == {"author": "me"}


def test_a_watcher_sees_what_happened_before_the_question(sandbox: Sandbox) -> None:
    sandbox.files.make_dir("watched")
    watcher = sandbox.files.watch_dir("watched")
    sandbox.files.write("watched/new.txt", "x")
    assert ("new.txt", "create") in [(event.name, event.type.value) for event in watcher.get_new_events()]
    watcher.stop()
    with pytest.raises(NotFoundException):
        sandbox.files.watch_dir("/not/there")


@pytest.mark.thorough
def test_signed_links_work_without_naming_the_sandbox(sandbox: Sandbox) -> None:
    up = sandbox.upload_url("linked.txt", use_signature_expiration=60)
    assert httpx.post(up, files={"file": ("whatever", b"by link")}).status_code == 200
    down = sandbox.download_url("linked.txt", use_signature_expiration=60)
    assert httpx.get(down).text == "by link"
    late = sandbox.download_url("linked.txt", use_signature_expiration=-10)
    answer = httpx.get(late)
    assert (answer.status_code, answer.json()) == (401, {"code": 401, "message": "signature is already expired"})
    assert httpx.get(down.replace("linked", "other")).json()["message"] == "invalid signature"


def test_the_record_of_a_sandbox_is_complete(sandbox: Sandbox) -> None:
    info = sandbox.get_info()
    assert (info.sandbox_id, info.template_id, info.metadata) == (sandbox.sandbox_id, "base", {"who": "sync"})
    before = info.end_at
    sandbox.set_timeout(600)
    assert sandbox.get_info().end_at > before
    assert sandbox.is_running()
    assert sandbox.get_metrics()[0].cpu_count >= 1
    assert sandbox.get_host(8000) == f"8000-{sandbox.sandbox_id}.sbx.test"


def test_connect_finds_the_same_sandbox(sandbox: Sandbox, server: RunningServer) -> None:
    sandbox.files.write("here", "yes")
    assert Sandbox.connect(sandbox.sandbox_id, **server.sdk()).files.read("here") == "yes"


def test_lists_are_filtered_and_paged(server: RunningServer) -> None:
    made = [Sandbox.create("base", metadata={"set": "list", "n": f"a&b={n}"}, **server.sdk()) for n in range(3)]
    try:
        pages = Sandbox.list(query=SandboxQuery(metadata={"set": "list"}), limit=2, **server.sdk())
        found = [info.sandbox_id for info in pages.next_items()]
        assert pages.has_next
        found += [info.sandbox_id for info in pages.next_items()]
        assert not pages.has_next
        assert found == [one.sandbox_id for one in reversed(made)]
        narrow = Sandbox.list(query=SandboxQuery(metadata={"n": "a&b=1"}), **server.sdk()).next_items()
        assert [info.sandbox_id for info in narrow] == [made[1].sandbox_id]
    finally:
        for one in made:
            one.kill()


def test_a_killed_sandbox_is_gone_everywhere(server: RunningServer) -> None:
    made = Sandbox.create("base", **server.sdk())
    assert made.kill() is True
    assert made.kill() is False
    assert made.is_running() is False
    with pytest.raises(TimeoutException):
        made.commands.run("echo x")
    with pytest.raises(TimeoutException):
        made.files.read("/etc/passwd")
    with pytest.raises(NotFoundException):
        Sandbox.connect(made.sandbox_id, **server.sdk())


def test_killing_a_sandbox_tells_the_one_who_waits_for_its_command(server: RunningServer) -> None:
    made = Sandbox.create("base", **server.sdk())
    handle = made.commands.run("sleep 60", background=True)
    made.kill()
    with pytest.raises(TimeoutException, match="killed or reached its end of life"):
        handle.wait()


def test_killing_a_sandbox_tells_the_one_who_uploads_to_it(server: RunningServer) -> None:
    made = Sandbox.create("base", **server.sdk())

    def parts() -> Iterator[bytes]:
        yield b"x" * 200_000
        made.kill()
        for _ in range(100):
            yield b"x" * 200_000

    with pytest.raises(TimeoutException, match="was killed or reached"):
        made.files.write("cut", parts())


@pytest.mark.thorough
def test_a_sandbox_whose_time_is_up_tells_the_one_who_waits(server: RunningServer) -> None:
    made = Sandbox.create("base", timeout=1, **server.sdk())
    began = time.monotonic()
    with pytest.raises(TimeoutException, match="killed or reached its end of life"):
        made.commands.run("sleep 60", timeout=30)
    assert time.monotonic() - began < 10
    assert made.is_running() is False


def test_a_tenant_sees_only_its_own_and_has_a_quota(server: RunningServer, sandbox: Sandbox) -> None:
    with pytest.raises(NotFoundException):
        Sandbox.connect(sandbox.sandbox_id, **server.sdk(BOB))
    assert Sandbox.kill(sandbox.sandbox_id, **server.sdk(BOB)) is False
    assert Sandbox.list(**server.sdk(BOB)).next_items() == []
    made = [Sandbox.create("base", **server.sdk(BOB)) for _ in range(2)]
    try:
        with pytest.raises(RateLimitException, match="maximum number"):
            Sandbox.create("base", **server.sdk(BOB))
    finally:
        for one in made:
            one.kill()


def test_a_wrong_key_is_refused(server: RunningServer) -> None:
    with pytest.raises(AuthenticationException):
        Sandbox.create("base", **server.sdk("e2b_" + "c" * 40))


@pytest.mark.thorough
def test_what_cannot_be_done_yet_is_refused_with_a_reason(server: RunningServer, sandbox: Sandbox) -> None:
    with pytest.raises((SandboxException, InvalidArgumentException), match=r"network\.policy"):
        Sandbox.create("base", network={"allow_out": ["2001:db8::1"]}, **server.sdk())
    with pytest.raises((SandboxException, InvalidArgumentException), match="template 'nothing' not found"):
        Sandbox.create("nothing", **server.sdk())
