"""Obligations of a backend: programs run as asked, and what they did is told truly."""

from __future__ import annotations

import asyncio

import pytest

from firkin.law.backend import ProcessControl, SandboxBackend
from firkin.law.capabilities import Capabilities, CapabilityName
from firkin.law.errors import (
    FirkinError,
    NotFound,
    ProcessFailure,
    ProcessFault,
    ResourceKind,
    UnsupportedCapability,
)
from firkin.law.ids import ProcessId, ProcessTag, SandboxId
from firkin.law.processes import (
    Argv,
    ById,
    ByTag,
    Command,
    Ended,
    Exited,
    ProcessEvent,
    ProcessStatus,
    ProcessStream,
    PtyOutput,
    PtySize,
    Shell,
    Signal,
    Signaled,
    Started,
    Stderr,
    Stdout,
)
from firkin.law.sandboxes import SandboxInfo
from firkin.testing.backend_suite import PATIENCE_S, BackendSuite, eventually

_TAG = ProcessTag("agent-a")


async def drained(stream: ProcessStream) -> list[ProcessEvent]:
    """Every event up to the end of the stream."""
    async with asyncio.timeout(PATIENCE_S):
        return [event async for event in stream]


async def until_output(stream: ProcessStream, wanted: bytes) -> bytes:
    """Read until `wanted` has come."""
    seen = b""
    async with asyncio.timeout(PATIENCE_S):
        while wanted not in seen:
            event = await anext(stream)
            if isinstance(event, Stdout | PtyOutput):
                seen += event.data
            assert not isinstance(event, Ended), f"it ended after {seen!r}"
    return seen


class RunObligations(BackendSuite):
    async def test_shell_text_is_read_by_a_shell(self, processes: ProcessControl, sandbox: SandboxInfo) -> None:
        output = await processes.run(sandbox.id, Command.shell("echo ok"))
        assert (output.stdout, output.stderr, output.status) == (b"ok\n", b"", Exited(0))
        assert output.ok

    @pytest.mark.parametrize("word", ["a  b", "$HOME", "a;b", "*", "'", '"', "\\", "a\nb", "", "`id`", "ünï", "-n"])
    async def test_arguments_reach_a_program_exactly(
        self, processes: ProcessControl, sandbox: SandboxInfo, word: str
    ) -> None:
        output = await processes.run(sandbox.id, Command.argv("printf", "<%s>", word))
        assert output.stdout == f"<{word}>".encode()

    async def test_a_failing_program_is_a_value(self, processes: ProcessControl, sandbox: SandboxInfo) -> None:
        assert (await processes.run(sandbox.id, Command.argv("false"))).status == Exited(1)
        assert (await processes.run(sandbox.id, Command.shell("exit 42"))).status == Exited(42)

    async def test_both_outputs_are_kept_apart(self, processes: ProcessControl, sandbox: SandboxInfo) -> None:
        output = await processes.run(sandbox.id, Command.shell("echo out; echo err >&2"))
        assert (output.stdout, output.stderr) == (b"out\n", b"err\n")

    async def test_cwd_env_and_user_are_honoured(self, processes: ProcessControl, sandbox: SandboxInfo) -> None:
        command = Command(mode=Shell("pwd; echo $A; id -u"), cwd="/tmp", env={"A": "x  y=z"}, user="root")
        output = await processes.run(sandbox.id, command)
        assert output.stdout.splitlines() == [b"/tmp", b"x y=z", b"0"]

    async def test_the_default_user_is_not_root_and_starts_at_home(
        self, processes: ProcessControl, sandbox: SandboxInfo
    ) -> None:
        user = await processes.lookup_user(sandbox.id, None)
        assert user.name == sandbox.default_user
        output = await processes.run(sandbox.id, Command.shell("id -u; pwd; echo $HOME $USER"))
        lines = output.stdout.decode().splitlines()
        assert lines == [str(user.uid), sandbox.default_workdir, f"{user.home} {user.name}"]

    async def test_users_are_looked_up_by_name(self, processes: ProcessControl, sandbox: SandboxInfo) -> None:
        root = await processes.lookup_user(sandbox.id, "root")
        assert (root.uid, root.gid) == (0, 0)
        with pytest.raises(NotFound) as caught:
            await processes.lookup_user(sandbox.id, "nobody-of-that-name")
        assert caught.value.resource is ResourceKind.USER
        with pytest.raises(NotFound) as caught:
            await processes.run(sandbox.id, Command(mode=Argv("true"), user="nobody-of-that-name"))
        assert caught.value.resource is ResourceKind.USER

    async def test_sandbox_environment_is_seen_by_every_process(
        self, backend: SandboxBackend, processes: ProcessControl, sandbox: SandboxInfo
    ) -> None:
        assert sandbox.template_id is not None
        template = await backend.templates.get(sandbox.template_id)
        made = await backend.sandboxes.create(self.spec(template, env={"A": "sandbox", "B": "kept"}))
        output = await processes.run(made.id, Command(mode=Shell("echo $A $B"), env={"A": "command"}))
        assert output.stdout == b"command kept\n"

    async def test_input_is_given_and_then_closed(self, processes: ProcessControl, sandbox: SandboxInfo) -> None:
        data = bytes(range(256)) * 1024
        output = await processes.run(sandbox.id, Command(mode=Argv("cat"), stdin=data))
        assert output.stdout == data

    async def test_without_input_standard_input_is_empty(self, processes: ProcessControl, sandbox: SandboxInfo) -> None:
        assert (await processes.run(sandbox.id, Command.argv("cat"))).stdout == b""

    async def test_a_timeout_kills_and_is_told_as_such(self, processes: ProcessControl, sandbox: SandboxInfo) -> None:
        command = Command(mode=Shell("echo first; sleep 1000"), timeout_s=0.3)
        events = await drained(await processes.stream(sandbox.id, command))
        assert Stdout(b"first\n") in events
        assert events[-1] == Ended(Signaled(9), timed_out=True)

    async def test_a_missing_program_or_directory_is_our_failure(
        self, processes: ProcessControl, sandbox: SandboxInfo
    ) -> None:
        for command, fault in (
            (Command.argv("no-such-program"), ProcessFault.CANNOT_START),
            (Command(mode=Argv("true"), cwd="/no/such/place"), ProcessFault.CWD_MISSING),
        ):
            with pytest.raises(ProcessFailure) as caught:
                await processes.run(sandbox.id, command)
            assert caught.value.fault is fault

    async def test_much_output_arrives_whole(self, processes: ProcessControl, sandbox: SandboxInfo) -> None:
        output = await processes.run(sandbox.id, Command.shell("yes 0123456789 | head -c 3000000"))
        assert len(output.stdout) == 3_000_000
        assert output.stdout == (b"0123456789\n" * 300_000)[:3_000_000]
        assert not output.truncated


class StreamObligations(BackendSuite):
    async def test_events_come_in_order(self, processes: ProcessControl, sandbox: SandboxInfo) -> None:
        command = Command(mode=Shell("echo $A; pwd; echo warn >&2"), tag=_TAG, cwd="/tmp", env={"A": "B"})
        stream = await processes.stream(sandbox.id, command)
        events = await drained(stream)
        assert isinstance(events[0], Started)
        info = events[0].info
        assert (info.tag, info.status, stream.info.id) == (_TAG, ProcessStatus.RUNNING, info.id)
        assert b"".join(event.data for event in events if isinstance(event, Stdout)) == b"B\n/tmp\n"
        assert b"".join(event.data for event in events if isinstance(event, Stderr)) == b"warn\n"
        assert events[-1] == Ended(Exited(0))
        assert sum(isinstance(event, Started | Ended) for event in events) == 2

    async def test_wait_truly_waits_and_tells_the_true_status(
        self, processes: ProcessControl, sandbox: SandboxInfo
    ) -> None:
        info = await processes.start(sandbox.id, Command.shell("sleep 0.2; echo late; exit 3"))
        assert info.status is ProcessStatus.RUNNING
        async with asyncio.timeout(PATIENCE_S):
            output = await processes.wait(sandbox.id, ById(info.id))
        assert (output.status, output.stdout) == (Exited(3), b"late\n")

    async def test_list_tells_what_runs_and_drops_what_ended(
        self, processes: ProcessControl, sandbox: SandboxInfo
    ) -> None:
        command = Command(mode=Argv("sleep", ("1000",)), tag=_TAG)
        info = await processes.start(sandbox.id, command)
        [listed] = await processes.list(sandbox.id)
        assert (listed.id, listed.tag, listed.argv) == (info.id, _TAG, ("sleep", "1000"))
        await processes.signal(sandbox.id, ByTag(_TAG), Signal.KILL)
        assert (await processes.wait(sandbox.id, ById(info.id))).status == Signaled(9)

        async def dropped() -> bool:
            return not await processes.list(sandbox.id)

        await eventually(dropped)

    async def test_signals_end_with_their_number(self, processes: ProcessControl, sandbox: SandboxInfo) -> None:
        for signal, number in ((Signal.TERM, 15), (Signal.INTERRUPT, 2), (10, 10)):
            info = await processes.start(sandbox.id, Command.argv("sleep", "1000"))
            await processes.signal(sandbox.id, ById(info.id), signal)
            assert (await processes.wait(sandbox.id, ById(info.id))).status == Signaled(number)

    async def test_input_by_tag_arrives_unchanged(self, processes: ProcessControl, sandbox: SandboxInfo) -> None:
        stream = await processes.stream(sandbox.id, Command(mode=Argv("cat"), keep_stdin=True, tag=_TAG))
        data = b"\x00\xff line\n"
        await processes.send_input(sandbox.id, ByTag(_TAG), data)
        assert await until_output(stream, data) == data
        await processes.close_stdin(sandbox.id, ByTag(_TAG))
        assert (await drained(stream))[-1] == Ended(Exited(0))

    async def test_input_that_nobody_takes_is_refused(self, processes: ProcessControl, sandbox: SandboxInfo) -> None:
        info = await processes.start(sandbox.id, Command.argv("sleep", "1000"))
        with pytest.raises(ProcessFailure) as caught:
            await processes.send_input(sandbox.id, ById(info.id), b"x")
        assert caught.value.fault is ProcessFault.STDIN_CLOSED

    async def test_a_process_that_never_was_is_not_found(self, processes: ProcessControl, sandbox: SandboxInfo) -> None:
        nobody = ById(ProcessId("4000000000"))
        for verb in (
            processes.connect(sandbox.id, ByTag(ProcessTag("no-such-tag"))),
            processes.signal(sandbox.id, nobody, Signal.TERM),
            processes.send_input(sandbox.id, nobody, b"x"),
            processes.close_stdin(sandbox.id, nobody),
            processes.wait(sandbox.id, nobody),
        ):
            with pytest.raises(NotFound) as caught:
                await verb
            assert caught.value.resource is ResourceKind.PROCESS

    async def test_a_program_outlives_its_stream_and_is_replayed(
        self, processes: ProcessControl, sandbox: SandboxInfo
    ) -> None:
        text = "echo before; read line; echo got $line"
        stream = await processes.stream(sandbox.id, Command(mode=Shell(text), keep_stdin=True, tag=_TAG))
        await until_output(stream, b"before\n")
        await stream.aclose()
        late = await processes.connect(sandbox.id, ByTag(_TAG), replay=True)
        new = await processes.connect(sandbox.id, ByTag(_TAG))
        await processes.send_input(sandbox.id, ByTag(_TAG), b"more\n")
        for stream, expected in ((late, b"before\ngot more\n"), (new, b"got more\n")):
            events = await drained(stream)
            assert b"".join(event.data for event in events if isinstance(event, Stdout)) == expected
            assert events[-1] == Ended(Exited(0))

    async def test_an_ended_process_can_still_be_waited_for(
        self, processes: ProcessControl, sandbox: SandboxInfo
    ) -> None:
        info = await processes.start(sandbox.id, Command.shell("echo done; exit 5"))
        for _ in range(2):
            output = await processes.wait(sandbox.id, ById(info.id))
            assert (output.status, output.stdout) == (Exited(5), b"done\n")

    async def test_a_slow_reader_loses_nothing(self, processes: ProcessControl, sandbox: SandboxInfo) -> None:
        stream = await processes.stream(sandbox.id, Command.shell("yes | head -c 2000000; echo end"))
        await asyncio.sleep(0.1)
        events = await drained(stream)
        assert sum(len(event.data) for event in events if isinstance(event, Stdout)) == 2_000_004

    async def test_many_programs_at_once_do_not_mix(self, processes: ProcessControl, sandbox: SandboxInfo) -> None:
        outputs = await asyncio.gather(
            *(processes.run(sandbox.id, Command.argv("echo", str(number))) for number in range(20))
        )
        assert [output.stdout for output in outputs] == [f"{number}\n".encode() for number in range(20)]

    async def test_a_process_of_another_sandbox_is_not_found(
        self, processes: ProcessControl, sandbox: SandboxInfo
    ) -> None:
        with pytest.raises(NotFound) as caught:
            await processes.list(SandboxId("neverexisted"))
        assert caught.value.resource is ResourceKind.SANDBOX


class TerminalObligations(BackendSuite):
    async def test_a_terminal_has_its_size_and_can_be_resized(
        self, processes: ProcessControl, capabilities: Capabilities, sandbox: SandboxInfo
    ) -> None:
        command = Command(mode=Shell("stty size; read x; stty size"), pty=PtySize(30, 90), tag=_TAG)
        if not capabilities.supports(CapabilityName.PROCESS_PTY):
            with pytest.raises(UnsupportedCapability) as caught:
                await processes.start(sandbox.id, command)
            assert caught.value.capability is CapabilityName.PROCESS_PTY
            return
        stream = await processes.stream(sandbox.id, command)
        await until_output(stream, b"30 90")
        await processes.resize_pty(sandbox.id, ByTag(_TAG), PtySize(40, 100))
        await processes.send_input(sandbox.id, ByTag(_TAG), b"\n")
        await until_output(stream, b"40 100")
        assert (await drained(stream))[-1] == Ended(Exited(0))

    async def test_control_c_interrupts_what_runs_in_a_terminal(
        self, processes: ProcessControl, capabilities: Capabilities, sandbox: SandboxInfo
    ) -> None:
        if not capabilities.supports(CapabilityName.PROCESS_PTY):
            pytest.skip(str(capabilities.refusal(CapabilityName.PROCESS_PTY)))
        # No shell: one that has just forked its child loses what comes before that has become another program.
        command = Command(mode=Argv("sleep", ("1000",)), pty=PtySize(), tag=_TAG)
        stream = await processes.stream(sandbox.id, command)
        assert isinstance(await anext(aiter(stream)), Started)
        await processes.send_input(sandbox.id, ByTag(_TAG), b"\x03")
        last = (await drained(stream))[-1]
        assert last in (Ended(Signaled(2)), Ended(Exited(130)))

    async def test_only_a_terminal_is_resized(self, processes: ProcessControl, sandbox: SandboxInfo) -> None:
        info = await processes.start(sandbox.id, Command.argv("sleep", "1000"))
        with pytest.raises(FirkinError) as caught:
            await processes.resize_pty(sandbox.id, ById(info.id), PtySize())
        assert isinstance(caught.value, ProcessFailure)
        assert caught.value.fault is ProcessFault.NOT_A_PTY
