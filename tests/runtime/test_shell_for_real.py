"""Retained shells with this machine's own bash and sh, through a real agent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from firkin.engine.guest_processes import GuestProcesses
from firkin.law.backend import SandboxBackend
from firkin.law.errors import ProcessFailure
from firkin.law.ids import SandboxId
from firkin.law.processes import Command, Exited
from firkin.runtime.processes import SandboxProcesses
from firkin.runtime.shell import Shell, ShellOptions
from tests.guest.conftest import RunningAgent, needs_root

pytestmark = needs_root


class _OneSandbox:
    """A backend that has only processes, of one sandbox."""

    def __init__(self, inside: GuestProcesses) -> None:
        self.processes = self
        self._inside = inside

    def __getattr__(self, verb: str) -> Any:
        def call(_: SandboxId, *args: object, **options: object) -> object:
            return getattr(self._inside, verb)(*args, **options)

        return call


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[RunningAgent]:
    running = RunningAgent(tmp_path)
    yield running
    running.stop()


@pytest.fixture
async def processes(agent: RunningAgent) -> AsyncIterator[SandboxProcesses]:
    link = await agent.link()
    backend = cast(SandboxBackend, _OneSandbox(GuestProcesses(link, default_user="root", default_workdir="/")))
    yield SandboxProcesses(backend, SandboxId("real"))
    await link.aclose()


@pytest.fixture(params=["bash", "sh"])
async def shell(processes: SandboxProcesses, request: pytest.FixtureRequest) -> AsyncIterator[Shell]:
    program = None if request.param == "bash" else "/bin/sh"
    async with await Shell.open(processes, ShellOptions(program=program)) as opened:
        yield opened


@pytest.mark.thorough
@pytest.mark.parametrize("text", ["echo 'x", 'echo "x', "if true", "( echo", "fi", "echo $(", "cat <<EOF"])
async def test_broken_text_never_wedges_the_shell(shell: Shell, text: str) -> None:
    await shell.run("cd /tmp")
    async with asyncio.timeout(10):
        await shell.run(text)
        assert (await shell.run("pwd")).stdout == b"/tmp\n"


@pytest.mark.thorough
async def test_state_output_and_status_are_exact(shell: Shell) -> None:
    await shell.run("cd /usr; export A='x  y'; f() { echo \"f:$1\"; }")
    output = await shell.run('printf "%s|" "$PWD" "$A"; f 1; printf err >&2; (exit 9)')
    assert (output.stdout, output.stderr, output.status) == (b"/usr|x  y|f:1\n", b"err", Exited(9))


@pytest.mark.thorough
async def test_large_outputs_of_both_kinds_come_whole(shell: Shell) -> None:
    output = await shell.run("head -c 3000000 /dev/zero; head -c 2000000 /dev/zero >&2")
    assert (len(output.stdout), len(output.stderr)) == (3_000_000, 2_000_000)


@pytest.mark.thorough
async def test_command_does_not_eat_the_next_one_from_standard_input(shell: Shell) -> None:
    assert (await shell.run("cat; echo end")).stdout == b"end\n"
    assert (await shell.run("echo next")).stdout == b"next\n"


@pytest.mark.thorough
async def test_own_environment_and_directory_end_with_the_command(shell: Shell) -> None:
    command = replace(Command.shell("pwd; echo $A; exit 3"), cwd="/tmp", env={"A": "it's"})
    output = await shell.run(command)
    assert (output.stdout, output.status) == (b"/tmp\nit's\n", Exited(3))
    assert (await shell.run('pwd; echo "<$A>"')).stdout == b"/\n<>\n"


@pytest.mark.thorough
async def test_timeout_ends_the_command_its_children_and_what_was_to_follow(
    shell: Shell, processes: SandboxProcesses, tmp_path: Path
) -> None:
    late = tmp_path / "late"
    command = Command.shell(f"sleep 1234 & (sleep 1234; true); echo x > {late}")
    with pytest.raises(ProcessFailure, match=r"within 0\.3 s"):
        await shell.run(replace(command, timeout_s=0.3))
    assert (await shell.run("echo usable")).stdout == b"usable\n"
    found = await processes.run("for d in /proc/[0-9]*; do tr '\\0' ' ' < $d/cmdline; echo; done 2>/dev/null")
    assert b"sleep 1234" not in found.stdout
    assert not late.exists()


@pytest.mark.thorough
async def test_options_of_the_shell_itself_do_not_break_the_protocol(shell: Shell) -> None:
    for text in ("set -u", "set -x", "set +x", "set -f", "IFS=:", "alias printf=false; printf() { :; }"):
        await shell.run(text)
    assert (await shell.run("echo a b")).stdout == b"a b\n"


@pytest.mark.thorough
async def test_exit_and_exec_give_their_status_and_a_fresh_shell(shell: Shell) -> None:
    assert (await shell.run("exit 5")).status == Exited(5)
    assert (await shell.run("exec sh -c 'exit 6'")).status == Exited(6)
    assert (await shell.run("set -e; false; echo never")).status == Exited(1)
    assert (await shell.run("echo fresh")).stdout == b"fresh\n"
