"""Retained shells: what a seed of this design got wrong, right."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace

import pytest

from firkin.law.errors import InvalidSpec, ProcessFailure, ProcessFault, SandboxUnavailable, WrongState
from firkin.law.ids import ProcessTag
from firkin.law.processes import Command, Ended, Exited, PtySize, Stderr, Stdout
from firkin.runtime.sandbox import Sandbox
from firkin.runtime.shell import Shell, ShellOptions


async def test_directory_and_variables_persist(sandbox: Sandbox) -> None:
    async with await sandbox.shell() as shell:
        await shell.run("cd /tmp; export NAME=kept")
        output = await shell.run('pwd; echo "$NAME"')
        assert (output.stdout, output.stderr, output.status) == (b"/tmp\nkept\n", b"", Exited(0))


async def test_first_line_arrives_while_the_command_still_runs(sandbox: Sandbox) -> None:
    async with await sandbox.shell() as shell:
        async with aclosing(shell.stream("echo out; sleep 100")) as events:
            async with asyncio.timeout(5):
                assert await anext(events) == Stdout(b"out\n")
        assert (await shell.run("echo usable")).stdout == b"usable\n"


async def test_both_outputs_and_the_status_are_told_apart(sandbox: Sandbox) -> None:
    async with await sandbox.shell() as shell:
        events = [event async for event in shell.stream("echo a; echo b >&2; false")]
        assert Stdout(b"a\n") in events
        assert Stderr(b"b\n") in events
        assert events[-1] == Ended(Exited(1))


async def test_output_without_a_last_newline_is_exact(sandbox: Sandbox) -> None:
    async with await sandbox.shell() as shell:
        assert (await shell.run("printf abc")).stdout == b"abc"


@pytest.mark.thorough
@pytest.mark.parametrize("text", ["echo 'x", 'echo "x', "if true", "( echo", "fi"])
async def test_unbalanced_text_is_an_error_of_that_command_only(sandbox: Sandbox, text: str) -> None:
    async with await sandbox.shell() as shell:
        assert not (await shell.run(text)).ok
        assert (await shell.run("echo fine")).stdout == b"fine\n"


async def test_argv_is_taken_exactly(sandbox: Sandbox) -> None:
    async with await sandbox.shell() as shell:
        output = await shell.run(Command.argv("echo", "a  b", "$HOME", "*", "it's", ";"))
        assert output.stdout == b"a  b $HOME * it's ;\n"


async def test_environment_and_directory_of_a_command_end_with_it(sandbox: Sandbox) -> None:
    async with await sandbox.shell() as shell:
        command = replace(Command.shell("pwd; true; echo $A"), cwd="/tmp", env={"A": "mine"})
        assert (await shell.run(command)).stdout == b"/tmp\nmine\n"
        assert (await shell.run('pwd; echo "<$A>"')).stdout == b"/home/user\n<>\n"


async def test_command_that_takes_too_long_is_ended_and_the_shell_is_usable(sandbox: Sandbox) -> None:
    async with await sandbox.shell() as shell:
        with pytest.raises(ProcessFailure, match=r"within 0\.05 s") as failure:
            await shell.run(replace(Command.shell("sleep 100; echo never > /tmp/late"), timeout_s=0.05))
        assert failure.value.fault is ProcessFault.TIMED_OUT
        assert (await shell.run("echo usable")).stdout == b"usable\n"
        assert not await sandbox.fs.exists("/tmp/late")


async def test_cancelled_caller_ends_its_command(sandbox: Sandbox) -> None:
    async with await sandbox.shell() as shell:
        running = asyncio.create_task(shell.run("touch /tmp/begun; sleep 100"))
        async with asyncio.timeout(5):
            while not await sandbox.fs.exists("/tmp/begun"):
                pass
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert (await shell.run("echo usable")).stdout == b"usable\n"


async def test_exit_ends_the_shell_with_its_status_and_the_next_command_has_a_new_one(sandbox: Sandbox) -> None:
    async with await sandbox.shell() as shell:
        output = await shell.run("echo bye; exit 3")
        assert (output.stdout, output.status) == (b"bye\n", Exited(3))
        assert (await shell.run("echo back")).stdout == b"back\n"


async def test_commands_of_one_shell_run_one_after_the_other(sandbox: Sandbox) -> None:
    async with await sandbox.shell() as shell:
        outputs = await asyncio.gather(*(shell.run(f"echo {n}; echo {n}") for n in range(5)))
        assert [output.stdout for output in outputs] == [f"{n}\n{n}\n".encode() for n in range(5)]


async def test_interrupt_ends_what_runs(sandbox: Sandbox) -> None:
    async with await sandbox.shell() as shell:
        await shell.interrupt()
        running = asyncio.create_task(shell.run("touch /tmp/begun; sleep 100"))
        async with asyncio.timeout(5):
            while not await sandbox.fs.exists("/tmp/begun"):
                pass
        await shell.interrupt()
        assert not (await running).ok
        assert (await shell.run("echo usable")).stdout == b"usable\n"


async def test_closed_shell_refuses_and_closing_again_is_fine(sandbox: Sandbox) -> None:
    shell = await sandbox.shell()
    await shell.close()
    await shell.close()
    assert shell.closed
    assert await sandbox.process.list() == []
    with pytest.raises(ProcessFailure) as failure:
        await shell.run("true")
    assert failure.value.fault is ProcessFault.SHELL_CLOSED


@pytest.mark.parametrize(
    "command",
    [
        replace(Command.shell("true"), pty=PtySize()),
        replace(Command.shell("true"), stdin=b"x"),
        replace(Command.shell("true"), user="root"),
        replace(Command.shell("true"), tag=ProcessTag("t")),
    ],
)
async def test_what_a_running_shell_cannot_give_is_refused(sandbox: Sandbox, command: Command) -> None:
    async with await sandbox.shell() as shell:
        with pytest.raises(InvalidSpec, match="cannot have"):
            await shell.run(command)


async def test_options_apply_to_the_shell(sandbox: Sandbox) -> None:
    options = ShellOptions(program="/bin/sh", env={"A": "b"}, cwd="/tmp", user="root")
    async with await sandbox.shell(options) as shell:
        assert (await shell.run("id -u; pwd; echo $A")).stdout == b"0\n/tmp\nb\n"


async def test_pool_takes_its_shells_in_turn(sandbox: Sandbox) -> None:
    async with await sandbox.shell_pool(2) as pool:
        first, second = pool.slot(0), pool.slot(1)
        assert isinstance(first, Shell)
        assert isinstance(second, Shell)
        assert (pool.slot(2), pool.slot(-1), len(pool.slots)) == (None, None, 2)
        await first.run("cd /tmp")
        assert (await second.run(Command.argv("pwd"))).stdout == b"/home/user\n"
        assert [(await pool.run("pwd")).stdout for _ in range(3)] == [b"/tmp\n", b"/home/user\n", b"/tmp\n"]
        await pool.close()


@pytest.mark.parametrize("size", [0, -1, 257])
async def test_impossible_pool_is_refused(sandbox: Sandbox, size: int) -> None:
    with pytest.raises(InvalidSpec, match="pool of"):
        await sandbox.shell_pool(size)


async def test_an_idle_shell_goes_on_after_a_pause_with_memory(sandbox: Sandbox) -> None:
    async with await sandbox.shell() as shell:
        await shell.run("cd /tmp; X=5")
        for _ in range(2):
            await sandbox.pause()
            with pytest.raises(WrongState):
                await shell.run("true")
            await sandbox.resume()
            assert (await shell.run("pwd; echo $X")).stdout == b"/tmp\n5\n"


async def test_a_shell_that_a_pause_ended_says_so_once(sandbox: Sandbox) -> None:
    async with await sandbox.shell() as shell:
        await shell.run("cd /tmp")
        await sandbox.pause(keep_memory=False)
        await sandbox.resume()
        with pytest.raises(
            ProcessFailure, match="ended while the sandbox was paused; the next command has a new shell"
        ):
            await shell.run("pwd")
        assert (await shell.run("pwd")).stdout == b"/home/user\n"


@pytest.mark.parametrize("keep_memory", [True, False])
async def test_a_command_that_a_pause_cut_off_is_ended_and_so_is_told(sandbox: Sandbox, keep_memory: bool) -> None:
    async with await sandbox.shell() as shell:
        running = asyncio.create_task(shell.run("touch /tmp/begun; sleep 100"))
        async with asyncio.timeout(5):
            while not await sandbox.fs.exists("/tmp/begun"):
                pass
        await sandbox.pause(keep_memory=keep_memory)
        with pytest.raises(SandboxUnavailable, match="was paused: the command was under way and is ended") as caught:
            await running
        assert caught.value.paused
        await sandbox.resume()
        assert (await shell.run("pwd")).stdout == b"/home/user\n"
        left = [info for info in await sandbox.process.list() if info.tag is not None]
        assert len(left) == 1, "the old shell is gone"


async def test_a_shell_closed_while_its_sandbox_is_paused_ends_nobody_else(sandbox: Sandbox) -> None:
    shell = await sandbox.shell()
    await sandbox.pause(keep_memory=False)
    await sandbox.resume()
    other = await sandbox.process.start("sleep 100")
    await shell.close()
    assert other.id in [info.id for info in await sandbox.process.list()]


async def test_a_stream_that_a_pause_cut_off_says_that_the_sandbox_was_paused(sandbox: Sandbox) -> None:
    process = await sandbox.process.stream("sleep 100")
    await sandbox.pause()
    with pytest.raises(SandboxUnavailable, match=r"was paused: .* connect to them again") as caught:
        async for _ in process:
            pass
    assert caught.value.paused
    assert process.cut_off
    await sandbox.resume()
    again = await sandbox.process.connect(process.id)
    assert not again.cut_off
