"""Obligations of a backend: of several pauses, resumes and ends at once, exactly as many win as could in turn."""

from __future__ import annotations

import asyncio

import pytest

from firkin.law.backend import PauseControl, ProcessControl, SandboxBackend
from firkin.law.capabilities import Capabilities
from firkin.law.errors import NotFound, WrongState
from firkin.law.processes import Command, Signal
from firkin.law.sandboxes import (
    DeleteOptions,
    SandboxFilter,
    SandboxInfo,
)
from firkin.law.snapshots import PauseOptions
from firkin.law.states import SandboxState
from firkin.testing.backend_suite import (
    FREE,
    MakeBackend,
    failures,
    linear,
    outcomes,
    said,
)
from firkin.testing.pause_obligations import BOTH, PauseSuite

_S = SandboxState
_RACES = 4


class PauseRaceObligations(PauseSuite):
    """Of several at once exactly as many win as could one after the other."""

    @BOTH
    async def test_one_of_many_pauses_wins(
        self, backend: SandboxBackend, pauses: PauseControl, sandbox: SandboxInfo, keep_memory: bool
    ) -> None:
        options = PauseOptions(keep_memory=keep_memory)
        answers = await outcomes(*(pauses.pause(sandbox.id, options) for _ in range(_RACES)))
        assert [type(failure) for failure in failures(answers)] == [WrongState] * (_RACES - 1)
        assert (await linear(backend, sandbox.id)).count(_S.PAUSED) == 1

    @BOTH
    async def test_one_of_many_resumes_wins(
        self,
        backend: SandboxBackend,
        pauses: PauseControl,
        processes: ProcessControl,
        sandbox: SandboxInfo,
        keep_memory: bool,
    ) -> None:
        await pauses.pause(sandbox.id, PauseOptions(keep_memory=keep_memory))
        answers = await outcomes(*(pauses.resume(sandbox.id) for _ in range(_RACES)))
        assert [type(failure) for failure in failures(answers)] == [WrongState] * (_RACES - 1)
        assert (await linear(backend, sandbox.id)).count(_S.RUNNING) == 2
        assert await said(processes, sandbox.id, "echo well") == "well\n"

    @BOTH
    async def test_pauses_and_resumes_at_once_take_turns(
        self, backend: SandboxBackend, pauses: PauseControl, sandbox: SandboxInfo, keep_memory: bool
    ) -> None:
        options = PauseOptions(keep_memory=keep_memory)
        attempts = [
            attempt for _ in range(_RACES) for attempt in (pauses.resume(sandbox.id), pauses.pause(sandbox.id, options))
        ]
        answers = await outcomes(*attempts)
        assert {type(failure) for failure in failures(answers)} <= {WrongState}
        resumed = sum(isinstance(answer, SandboxInfo) for answer in answers)
        paused = len(answers) - resumed - len(failures(answers))
        states = await linear(backend, sandbox.id)
        assert (states.count(_S.PAUSED), states.count(_S.RUNNING)) == (paused, 1 + resumed)
        assert await self.state(backend, sandbox.id) is states[-1]

    @BOTH
    @pytest.mark.parametrize("first", ["kill", "pause"])
    async def test_a_kill_wins_over_a_pause(
        self, backend: SandboxBackend, pauses: PauseControl, sandbox: SandboxInfo, keep_memory: bool, first: str
    ) -> None:
        pause = pauses.pause(sandbox.id, PauseOptions(keep_memory=keep_memory))
        kill = backend.sandboxes.kill(sandbox.id, Signal.KILL)
        answers = await outcomes(*((kill, pause) if first == "kill" else (pause, kill)))
        assert {type(failure) for failure in failures(answers)} <= {WrongState}
        assert len(failures(answers)) <= 1
        states = await linear(backend, sandbox.id)
        assert states[-1] is _S.STOPPED
        assert states.count(_S.PAUSED) == 1 - len(failures(answers))

    @BOTH
    async def test_a_delete_wins_over_a_pause_and_leaves_nothing(
        self, backend: SandboxBackend, pauses: PauseControl, sandbox: SandboxInfo, keep_memory: bool
    ) -> None:
        answers = await outcomes(
            pauses.pause(sandbox.id, PauseOptions(keep_memory=keep_memory)),
            backend.sandboxes.delete(sandbox.id, DeleteOptions(force=True)),
            pauses.resume(sandbox.id),
        )
        assert {type(failure) for failure in failures(answers)} <= {WrongState, NotFound}
        assert answers[1] is None
        assert await self.leftovers(backend) == []
        assert (await linear(backend, sandbox.id))[-1] is _S.DELETED

    @BOTH
    async def test_a_resume_races_a_kill(
        self, backend: SandboxBackend, pauses: PauseControl, sandbox: SandboxInfo, keep_memory: bool
    ) -> None:
        await pauses.pause(sandbox.id, PauseOptions(keep_memory=keep_memory))
        answers = await outcomes(pauses.resume(sandbox.id), backend.sandboxes.kill(sandbox.id, Signal.KILL))
        assert {type(failure) for failure in failures(answers)} <= {WrongState}
        assert (await linear(backend, sandbox.id))[-1] is _S.STOPPED

    @BOTH
    async def test_whoever_asked_may_walk_away(
        self,
        backend: SandboxBackend,
        pauses: PauseControl,
        processes: ProcessControl,
        sandbox: SandboxInfo,
        keep_memory: bool,
    ) -> None:
        """What was begun is done or was never begun; it is never left half-way."""
        for wait_s in (0.0, 0.001, 0.005):
            for attempt in (pauses.pause(sandbox.id, PauseOptions(keep_memory=keep_memory)), pauses.resume(sandbox.id)):
                await outcomes(asyncio.wait_for(attempt, wait_s))
        await outcomes(pauses.resume(sandbox.id))
        await linear(backend, sandbox.id)
        assert await said(processes, sandbox.id, "echo well") == "well\n"


class PauseRestartObligations(PauseSuite):
    @BOTH
    async def test_a_paused_sandbox_is_found_again_and_resumed(
        self, make_backend: MakeBackend, keep_memory: bool
    ) -> None:
        first = await make_backend(FREE)
        capabilities = await first.capabilities()
        info, started = await self._paused(first, capabilities, PauseOptions(keep_memory=keep_memory))
        await first.aclose()
        second = await make_backend(FREE)
        try:
            assert await second.sandboxes.inspect(info.id) == info
            assert second.processes is not None
            await self.pauses_of(second, capabilities).resume(info.id)
            assert await said(second.processes, info.id, "cat /tmp/kept") == "kept\n"
            running = [process.id for process in await second.processes.list(info.id)]
            assert running == ([started] if keep_memory else [])
            await linear(second, info.id)
        finally:
            await second.aclose(kill_all=True)

    async def _paused(
        self, backend: SandboxBackend, capabilities: Capabilities, options: PauseOptions
    ) -> tuple[SandboxInfo, str]:
        pauses, processes = self.pauses_of(backend, capabilities), backend.processes
        assert processes is not None
        template = await backend.templates.prepare(self.template_spec)
        info = await backend.sandboxes.create(self.spec(template))
        await said(processes, info.id, "echo kept > /tmp/kept")
        started = await processes.start(info.id, Command.argv("sleep", "1000"))
        await pauses.pause(info.id, options)
        return await backend.sandboxes.inspect(info.id), started.id

    @BOTH
    async def test_ending_everything_ends_what_is_paused(self, make_backend: MakeBackend, keep_memory: bool) -> None:
        first = await make_backend(FREE)
        await self._paused(first, await first.capabilities(), PauseOptions(keep_memory=keep_memory))
        await first.aclose(kill_all=True)
        second = await make_backend(FREE)
        try:
            assert await self.leftovers(second) == []
            assert list(await second.sandboxes.list(SandboxFilter())) == []
        finally:
            await second.aclose(kill_all=True)
