"""Obligations of a backend as seen through the facade: live handles and retained shells."""

from __future__ import annotations

import asyncio

import pytest
import pytest_asyncio

from firkin.law.backend import ProcessControl, SandboxBackend
from firkin.law.errors import InvalidSpec, NotFound, ProcessFailure, ProcessFault
from firkin.law.processes import Argv, Command, Exited, Shell, Stdout
from firkin.law.templates import TemplateInfo
from firkin.lifetimes import children
from firkin.runtime.runtime import Runtime
from firkin.runtime.sandbox import Sandbox
from firkin.testing.backend_suite import PATIENCE_S, BackendSuite

_SAYS_TWICE = Command(mode=Shell("echo one; read x; echo $x"), keep_stdin=True)


class RuntimeObligations(BackendSuite):
    @pytest.fixture
    def runtime(self, backend: SandboxBackend) -> Runtime:
        return Runtime(backend)

    @pytest_asyncio.fixture
    async def handle(self, runtime: Runtime, processes: ProcessControl, template: TemplateInfo) -> Sandbox:
        return await runtime.sandboxes.create(self.spec(template))

    async def test_a_handle_runs_text_and_argv(self, handle: Sandbox) -> None:
        output = await handle.exec("echo contract")
        assert (output.stdout, output.status) == (b"contract\n", Exited(0))
        assert not (await handle.exec(Command.argv("false"))).ok

    async def test_a_handle_as_a_block_leaves_nothing(
        self, runtime: Runtime, backend: SandboxBackend, template: TemplateInfo
    ) -> None:
        async with await runtime.sandboxes.create(self.spec(template)) as sandbox:
            assert (await sandbox.refresh()).id == sandbox.id
        with pytest.raises(NotFound):
            await backend.sandboxes.inspect(sandbox.id)
        assert await self.leftovers(backend) == []

    async def test_files_go_through_a_handle(self, handle: Sandbox) -> None:
        entry = await handle.fs.write("/tmp/work/contract.txt", b"hello world\n")
        assert entry.size_bytes == 12
        assert await handle.fs.read("/tmp/work/contract.txt") == b"hello world\n"
        await handle.fs.remove("/tmp/work/contract.txt")
        with pytest.raises(NotFound):
            await handle.fs.stat("/tmp/work/contract.txt")

    async def test_all_who_wait_for_a_process_are_given_the_same(self, handle: Sandbox) -> None:
        process = await handle.process.stream(_SAYS_TWICE)
        async with asyncio.timeout(PATIENCE_S), children() as waiting:
            tasks = [waiting.start(process.wait(), name="wait") for _ in range(3)]
            await process.send_input("two\n")
            outputs = await asyncio.gather(*tasks)
        assert {(output.stdout, output.status) for output in outputs} == {(b"one\ntwo\n", Exited(0))}

    async def test_a_wait_that_was_given_up_takes_no_output_with_it(self, handle: Sandbox) -> None:
        process = await handle.process.stream(_SAYS_TWICE)
        async with asyncio.timeout(PATIENCE_S):
            async with children() as waiting:
                waiting.start(process.wait(), name="wait that is given up")
                async with await handle.process.connect(process.id, replay=True) as other:
                    while await anext(other) != Stdout(b"one\n"):
                        pass
            await process.send_input("two\n")
            assert (await process.wait()).stdout == b"one\ntwo\n"


class ShellObligations(RuntimeObligations):
    async def test_a_pool_of_two_shells(self, handle: Sandbox) -> None:
        async with await handle.shell_pool(2) as pool:
            first, second = pool.slot(0), pool.slot(1)
            assert first is not None
            assert second is not None
            assert pool.slot(2) is None
            assert (await first.run("echo $((40 + 2))")).stdout == b"42\n"
            assert (await second.run(Command.argv("printf", "%s", "a  $b"))).stdout == b"a  $b"
            assert (await pool.run("echo pooled")).stdout == b"pooled\n"
        with pytest.raises(ProcessFailure) as caught:
            await pool.run("echo too late")
        assert caught.value.fault is ProcessFault.SHELL_CLOSED
        await pool.close()

    async def test_a_pool_has_at_least_one_shell(self, handle: Sandbox) -> None:
        with pytest.raises(InvalidSpec):
            await handle.shell_pool(0)

    async def test_a_shell_keeps_its_directory_and_variables(self, handle: Sandbox) -> None:
        async with await handle.shell() as shell:
            await shell.run("cd /tmp; export KEPT=yes")
            assert (await shell.run("pwd; echo $KEPT")).stdout == b"/tmp\nyes\n"

    async def test_a_commands_own_directory_and_environment_end_with_it(self, handle: Sandbox) -> None:
        async with await handle.shell() as shell:
            own = Command(mode=Shell("pwd; echo $OWN"), cwd="/tmp", env={"OWN": "it's"})
            assert (await shell.run(own)).stdout == b"/tmp\nit's\n"
            assert (await shell.run("echo [$OWN]")).stdout == b"[]\n"

    async def test_statuses_and_both_outputs_come_through_a_shell(self, handle: Sandbox) -> None:
        async with await handle.shell() as shell:
            output = await shell.run("echo out; echo err >&2; false")
            assert (output.stdout, output.stderr, output.status) == (b"out\n", b"err\n", Exited(1))

    async def test_unbalanced_quoting_is_the_commands_own_error(self, handle: Sandbox) -> None:
        async with await handle.shell() as shell:
            async with asyncio.timeout(PATIENCE_S):
                output = await shell.run("echo 'open")
            assert output.status != Exited(0)
            assert (await shell.run("echo well")).stdout == b"well\n"

    async def test_a_timeout_ends_the_command_and_the_shell_stays_usable(self, handle: Sandbox) -> None:
        async with await handle.shell() as shell:
            with pytest.raises(ProcessFailure) as caught:
                await shell.run(Command(mode=Argv("sleep", ("1000",)), timeout_s=0.2))
            assert caught.value.fault is ProcessFault.TIMED_OUT
            assert (await shell.run("echo again")).stdout == b"again\n"

    async def test_output_of_a_shell_comes_before_the_command_ends(self, handle: Sandbox) -> None:
        async with await handle.shell() as shell:
            events = shell.stream("echo early; sleep 1000")
            async with asyncio.timeout(PATIENCE_S):
                assert await anext(events) == Stdout(b"early\n")
            await events.aclose()

    async def test_closing_a_shell_twice_is_nothing(self, handle: Sandbox) -> None:
        shell = await handle.shell()
        await shell.close()
        await shell.close()
        assert await handle.process.list() == []
