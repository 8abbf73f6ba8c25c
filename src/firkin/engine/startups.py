"""What a template wants to run in each of its sandboxes before anybody gets in."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from firkin.engine.guest_processes import GuestProcesses
from firkin.engine.program_lines import described
from firkin.law.build_steps import Startup
from firkin.law.errors import FirkinError, TemplateFault, TemplatePrepareFailure
from firkin.law.ids import ProcessTag
from firkin.law.processes import Argv, ById, Command, CommandStatus, Exited, ProcessInfo
from firkin.lifetimes import children

TAG = ProcessTag("start-command")
_FIRST_LOOK_S, _LAST_LOOK_S = 0.02, 2.0
_ONE_TRY_WITHIN_S = 30.0
_SHOWN = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """As whom, where and with which variables both commands run."""

    user: str
    workdir: str
    env: Mapping[str, str]


async def start_up(
    processes: GuestProcesses, startup: Startup, around: Surroundings, *, watched_s: float = 0.0
) -> None:
    """Start, and wait until ready. `TemplatePrepareFailure` (`START_FAILED`) that says which of both failed, and how.

    A start command that ends by itself with 0 has put itself in the background. Without
    a ready command it is watched for `watched_s`, in which it must not fail.
    """
    started = await _started(processes, startup.start, around)
    async with children() as watching:
        ended = watching.start(_end_of(processes, started), name="start command")
        if startup.ready:
            await _ready(processes, startup, around, ended)
        elif watched_s:
            await asyncio.wait({ended}, timeout=watched_s)
            if ended.done():
                ended.result()
        ended.cancel()


async def _started(processes: GuestProcesses, start: tuple[str, ...], around: Surroundings) -> ProcessInfo | None:
    if not start:
        return None
    try:
        return await processes.start(_command(start, around, tag=TAG))
    except FirkinError as error:
        raise _failed(f"the start command cannot be started: {error}") from error


async def _end_of(processes: GuestProcesses, started: ProcessInfo | None) -> CommandStatus:
    if started is None:
        return Exited(0)
    output = await processes.wait(ById(started.id))
    if output.status != Exited(0):
        said = (output.stderr or output.stdout)[-_SHOWN:].decode(errors="replace").strip()
        raise _failed(f"the start command ended before it was ready: {described(output.status)}\n{said}".rstrip())
    return output.status


async def _ready(
    processes: GuestProcesses, startup: Startup, around: Surroundings, ended: asyncio.Task[CommandStatus]
) -> None:
    said = ""
    pause_s = _FIRST_LOOK_S
    try:
        async with asyncio.timeout(startup.ready_within_s):
            while True:
                said = await _complaint(processes, startup.ready, around)
                if not said:
                    return
                await asyncio.wait({ended}, timeout=pause_s)
                if ended.done():
                    ended.result()
                    await asyncio.sleep(pause_s)
                pause_s = min(_LAST_LOOK_S, pause_s * 1.5)
    except TimeoutError:
        command = shlex.join(startup.ready)[:_SHOWN]
        late = f"the ready command ({command}) did not succeed within {startup.ready_within_s:g} s"
        raise _failed(f"{late}: {said or 'its first try took all of them'}") from None


async def _complaint(processes: GuestProcesses, ready: tuple[str, ...], around: Surroundings) -> str:
    """What the ready command has against it; empty once it exits with 0."""
    try:
        output = await processes.run(_command(ready, around, timeout_s=_ONE_TRY_WITHIN_S))
    except FirkinError as error:
        return str(error)
    if output.status == Exited(0):
        return ""
    said = (output.stderr or output.stdout)[-_SHOWN:].decode(errors="replace").strip()
    return f"{described(output.status)} {said}".strip()


def _command(
    argv: tuple[str, ...], around: Surroundings, *, tag: ProcessTag | None = None, timeout_s: float | None = None
) -> Command:
    mode = Argv(argv[0], argv[1:])
    return Command(mode=mode, user=around.user, cwd=around.workdir, env=around.env, tag=tag, timeout_s=timeout_s)


def _failed(text: str) -> TemplatePrepareFailure:
    return TemplatePrepareFailure(TemplateFault.START_FAILED, text)
