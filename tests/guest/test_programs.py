"""Programs get what was asked for, and nothing else."""

from __future__ import annotations

import asyncio
import os
import re

import pytest

from firkin.engine.guest_processes import GuestProcesses
from firkin.law.errors import InvalidSpec, NotFound, ProcessFailure, ProcessFault, ResourceKind
from firkin.law.ids import ProcessTag
from firkin.law.processes import (
    Argv,
    ById,
    ByTag,
    Command,
    CommandOutput,
    Ended,
    Exited,
    ProcessStream,
    PtyOutput,
    PtySize,
    Signal,
    Signaled,
    Started,
    Stdout,
)
from tests.guest.conftest import needs_root

pytestmark = pytest.mark.skipif(not os.path.exists("/bin/sh"), reason="needs a shell")


def shell(text: str, **fields: object) -> Command:
    return Command(mode=Argv("/bin/sh", ("-c", text)), **fields)  # type: ignore[arg-type]


async def text_of(stream: ProcessStream, until: bytes) -> bytes:
    """Output up to and with `until`."""
    seen = b""
    async for event in stream:
        if isinstance(event, Stdout | PtyOutput):
            seen += event.data
            if until in seen:
                return seen
    raise AssertionError(f"{until!r} never came; only {seen!r}")


async def test_an_argv_reaches_the_program_exactly_as_given(processes: GuestProcesses) -> None:
    words = ("a  b", "$HOME", "*", "", "'\"\\", "ä\n", os.fsdecode(b"\xff\xfe"))
    output = await processes.run(Command.argv("printf", r"%s\0", *words))
    assert output.stdout == b"".join(os.fsencode(word) + b"\0" for word in words)


async def test_a_shell_reads_shell_text(processes: GuestProcesses) -> None:
    output = await processes.run(Command.shell("echo $((1+2)); echo no >&2; exit 3"))
    assert output == CommandOutput(status=Exited(3), stdout=b"3\n", stderr=b"no\n")


async def test_the_environment_is_the_defaults_and_the_given(processes: GuestProcesses) -> None:
    output = await processes.run(Command(mode=Argv("env"), env={"A": "1 2", "HOME": "/elsewhere"}))
    found = dict(line.split("=", 1) for line in output.stdout.decode().splitlines())
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    assert found.pop("SHELL")
    assert found == {"PATH": path, "HOME": "/elsewhere", "USER": "root", "LOGNAME": "root", "A": "1 2"}


async def test_a_program_is_found_on_its_own_path(processes: GuestProcesses, tmp_path: os.PathLike[str]) -> None:
    tool = os.path.join(tmp_path, "tool")
    with open(tool, "w") as file:
        file.write("#!/bin/sh\necho found\n")
    os.chmod(tool, 0o755)
    output = await processes.run(Command(mode=Argv("tool"), env={"PATH": f"/nowhere:{tmp_path}"}))
    assert output.stdout == b"found\n"


async def test_a_program_starts_in_its_directory(processes: GuestProcesses) -> None:
    assert (await processes.run(Command(mode=Argv("pwd"), cwd="/usr"))).stdout == b"/usr\n"


async def test_a_missing_directory_is_told(processes: GuestProcesses) -> None:
    with pytest.raises(ProcessFailure, match=re.escape("cwd '/not/there' does not exist")) as caught:
        await processes.run(Command(mode=Argv("pwd"), cwd="/not/there"))
    assert caught.value.fault is ProcessFault.CWD_MISSING


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["not-a-program", "/not/a/program", "/etc/passwd", "/"])
@pytest.mark.parametrize("pty", [None, PtySize()])
async def test_what_cannot_be_started_is_told(processes: GuestProcesses, name: str, pty: PtySize | None) -> None:
    with pytest.raises(ProcessFailure) as caught:
        await processes.run(Command(mode=Argv(name), pty=pty))
    assert caught.value.fault is ProcessFault.CANNOT_START


async def test_an_unknown_user_is_told(processes: GuestProcesses) -> None:
    with pytest.raises(NotFound) as caught:
        await processes.run(Command(mode=Argv("id"), user="nobody-knows"))
    assert (caught.value.resource, caught.value.id) == (ResourceKind.USER, "nobody-knows")


async def test_too_long_a_command_is_refused(processes: GuestProcesses) -> None:
    with pytest.raises(InvalidSpec):
        await processes.run(Command.argv("echo", "x" * (1 << 20)))


@pytest.mark.thorough
@needs_root
@pytest.mark.parametrize("pty", [None, PtySize()])
async def test_a_user_gets_his_ids_and_no_capabilities(processes: GuestProcesses, pty: PtySize | None) -> None:
    script = "id -u; id -g; umask; grep -E '^(Cap|Groups|Sig(Blk|Ign))' /proc/self/status"
    output = await processes.run(shell(script, user="nobody", cwd="/", pty=pty))
    lines = output.stdout.decode().splitlines()
    facts = dict(line.split(":\t") for line in lines[3:])
    assert lines[:3] == ["65534", "65534", "0022"]
    assert facts["Groups"].split() == ["65534"]
    assert {facts[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb", "SigBlk", "SigIgn")} == {"0" * 16}
    assert int(facts["CapBnd"], 16)


@needs_root
async def test_root_is_root_again_after_others(processes: GuestProcesses) -> None:
    before = (await processes.run(shell("id; grep Cap /proc/self/status"))).stdout
    await processes.run(shell("true", user="nobody", cwd="/"))
    assert (await processes.run(shell("id; grep Cap /proc/self/status"))).stdout == before


async def test_a_program_has_three_descriptors_and_its_own_session(processes: GuestProcesses) -> None:
    listed = (await processes.run(Command.argv("ls", "/proc/self/fd"))).stdout
    assert listed.split() == [b"0", b"1", b"2", b"3"]  # the last is the listing's own
    ids = (await processes.run(Command.argv("cut", "-d ", "-f1,5,6", "/proc/self/stat"))).stdout
    assert len(set(ids.split())) == 1


async def test_stdin_bytes_are_written_and_closed(processes: GuestProcesses) -> None:
    assert (await processes.run(Command(mode=Argv("cat"), stdin=b"abc\0"))).stdout == b"abc\0"


async def test_long_stdin_flows_while_output_is_read(processes: GuestProcesses) -> None:
    data = os.urandom(1 << 20) * 3
    assert (await processes.run(Command(mode=Argv("cat"), stdin=data))).stdout == data


async def test_stdin_that_nobody_reads_does_not_hold_up_the_end(processes: GuestProcesses) -> None:
    output = await processes.run(Command(mode=Argv("true"), stdin=bytes(3 << 20)))
    assert output.status == Exited(0)


async def test_without_stdin_a_program_reads_nothing(processes: GuestProcesses) -> None:
    assert await processes.run(Command.argv("cat")) == CommandOutput(status=Exited(0))


async def test_input_is_sent_until_it_is_closed(processes: GuestProcesses) -> None:
    stream = await processes.stream(Command(mode=Argv("cat"), keep_stdin=True))
    selector = ById(stream.info.id)
    await processes.send_input(selector, b"one ")
    await processes.send_input(selector, b"two\n")
    assert await text_of(stream, b"\n") == b"one two\n"
    await processes.close_stdin(selector)
    await processes.close_stdin(selector)
    assert await anext(stream) == Ended(Exited(0))
    await stream.aclose()


async def test_input_without_stdin_is_refused(processes: GuestProcesses) -> None:
    info = await processes.start(Command.argv("sleep", "60"))
    with pytest.raises(ProcessFailure) as caught:
        await processes.send_input(ById(info.id), b"x")
    assert caught.value.fault is ProcessFault.STDIN_CLOSED


async def test_input_to_a_program_that_ends_is_refused(processes: GuestProcesses) -> None:
    info = await processes.start(Command(mode=Argv("sleep", ("60",)), keep_stdin=True))
    sending = asyncio.create_task(processes.send_input(ById(info.id), bytes(1 << 20)))
    await processes.list()
    await processes.signal(ById(info.id), Signal.KILL)
    with pytest.raises(ProcessFailure) as caught:
        await sending
    assert caught.value.fault is ProcessFault.STDIN_CLOSED


@pytest.mark.thorough
@pytest.mark.parametrize(("signal", "number"), [(Signal.TERM, 15), (Signal.KILL, 9), (Signal.INTERRUPT, 2), (10, 10)])
async def test_signals_arrive(processes: GuestProcesses, signal: Signal | int, number: int) -> None:
    info = await processes.start(Command.argv("sleep", "60"))
    await processes.signal(ById(info.id), signal)
    assert (await processes.wait(ById(info.id))).status == Signaled(number)


async def test_an_ended_program_cannot_be_signalled(processes: GuestProcesses) -> None:
    info = await processes.start(Command.argv("true"))
    await processes.wait(ById(info.id))
    with pytest.raises(NotFound) as caught:
        await processes.signal(ById(info.id), Signal.TERM)
    assert (caught.value.resource, caught.value.id) == (ResourceKind.PROCESS, info.id)


@pytest.mark.thorough
async def test_a_deadline_kills_and_ends_the_stream_though_others_hold_the_pipe(processes: GuestProcesses) -> None:
    stream = await processes.stream(shell("sleep 60 & echo out; exec sleep 60", timeout_s=0.3))
    events = [event async for event in stream]
    assert events[1:] == [Stdout(b"out\n"), Ended(Signaled(9), timed_out=True)]


@pytest.mark.thorough
async def test_a_deadline_ends_the_stream_of_a_program_that_ended_itself(processes: GuestProcesses) -> None:
    stream = await processes.stream(shell("sleep 60 & echo out", timeout_s=0.3))
    assert [event async for event in stream][-1] == Ended(Exited(0))


@pytest.mark.thorough
async def test_run_tells_that_time_was_up(processes: GuestProcesses) -> None:
    with pytest.raises(ProcessFailure) as caught:
        await processes.run(Command(mode=Argv("sleep", ("60",)), timeout_s=0.1))
    assert caught.value.fault is ProcessFault.TIMED_OUT
    assert await processes.list() == []


async def test_a_cancelled_run_takes_the_program_with_it(processes: GuestProcesses) -> None:
    running = asyncio.create_task(processes.run(Command.argv("sleep", "60")))
    while not await processes.list():
        pass
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    while await processes.list():
        pass


@pytest.mark.thorough
async def test_a_grandchild_that_holds_the_pipe_delays_the_end(processes: GuestProcesses) -> None:
    output = await processes.run(shell("(sleep 0.2; echo late) & echo early"))
    assert output.stdout == b"early\nlate\n"


async def test_programs_are_listed_by_what_they_were_asked(processes: GuestProcesses) -> None:
    command = Command(mode=Argv("sleep", ("60",)), cwd="/usr", env={"A": "b"}, tag=ProcessTag("mine"))
    info = await processes.start(command)
    [listed] = await processes.list()
    assert listed == info
    assert (listed.argv, listed.cwd, dict(listed.env), listed.tag) == (("sleep", "60"), "/usr", {"A": "b"}, "mine")


async def test_a_tag_finds_a_program(processes: GuestProcesses) -> None:
    await processes.start(Command(mode=Argv("echo", ("hi",)), tag=ProcessTag("greeter")))
    output = await processes.wait(ByTag(ProcessTag("greeter")))
    assert (output.status, output.stdout) == (Exited(0), b"hi\n")
    with pytest.raises(NotFound):
        await processes.wait(ByTag(ProcessTag("other")))


async def test_a_terminal_has_the_size_asked_for(processes: GuestProcesses) -> None:
    stream = await processes.stream(shell("stty size; read x; stty size; tty", pty=PtySize(rows=33, cols=101)))
    assert isinstance(await anext(stream), Started)
    assert b"33 101" in await text_of(stream, b"\n")
    await processes.resize_pty(ById(stream.info.id), PtySize(rows=5, cols=7))
    await processes.send_input(ById(stream.info.id), b"\n")
    assert b"5 7" in await text_of(stream, b"/dev/pts/")
    await stream.aclose()


async def test_a_terminal_may_be_of_no_known_size(processes: GuestProcesses) -> None:
    output = await processes.run(shell("stty size", pty=PtySize(rows=0, cols=0)))
    assert output.stdout == b"0 0\r\n"


async def test_ctrl_c_interrupts_what_runs_on_a_terminal(processes: GuestProcesses) -> None:
    stream = await processes.stream(shell("echo go; exec sleep 60", pty=PtySize()))
    await text_of(stream, b"go")
    await processes.send_input(ById(stream.info.id), b"\x03")
    assert [event async for event in stream][-1] == Ended(Signaled(2))


async def test_ctrl_d_ends_the_input_of_a_terminal(processes: GuestProcesses) -> None:
    stream = await processes.stream(Command(mode=Argv("cat"), pty=PtySize()))
    await processes.send_input(ById(stream.info.id), b"hello\n\x04")
    assert [event async for event in stream][-1] == Ended(Exited(0))


async def test_a_terminals_input_cannot_be_closed(processes: GuestProcesses) -> None:
    stream = await processes.stream(Command(mode=Argv("cat"), pty=PtySize()))
    with pytest.raises(ProcessFailure) as caught:
        await processes.close_stdin(ById(stream.info.id))
    assert caught.value.fault is ProcessFault.PTY_STDIN
    with pytest.raises(ProcessFailure) as caught:
        await processes.start(Command(mode=Argv("cat"), pty=PtySize(), stdin=b"x"))
    assert caught.value.fault is ProcessFault.PTY_STDIN
    await stream.aclose()


async def test_only_a_terminal_has_a_size(processes: GuestProcesses) -> None:
    info = await processes.start(Command.argv("sleep", "60"))
    with pytest.raises(ProcessFailure) as caught:
        await processes.resize_pty(ById(info.id), PtySize())
    assert caught.value.fault is ProcessFault.NOT_A_PTY


async def test_accounts_are_looked_up(processes: GuestProcesses) -> None:
    root = await processes.lookup_user(None)
    assert (root.name, root.uid, root.gid, root.home) == ("root", 0, 0, "/root")
    assert (await processes.lookup_user("daemon")).uid == 1
    with pytest.raises(NotFound):
        await processes.lookup_user("nobody-knows")
