"""Many alive: what an idle one costs, and what they cost the server's own process.

Sandboxes are made over plain HTTP, so that the benchmark's own memory does not
grow with them and distort the figure.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from firkin.cli.bench.machine import resident_kb, unused_kb
from firkin.cli.bench.raw_http import Inside, RawCaller
from firkin.cli.bench.samples import Lifecycle, Series
from firkin.cli.bench.stage import Stage
from firkin.cli.failures import CommandFailure
from firkin.lifetimes import children

_AT_ONCE = 8
_SETTLE_S = 2.0
_RESIDENT_WITH = 100
_Work = Callable[[RawCaller, int], Awaitable[None]]


async def density(stage: Stage) -> list[Series]:
    found = []
    if stage.address.pid is not None:
        found.append(_resident(stage, stage.address.pid, 0))
    if stage.amounts.idle:
        found += await _memory_per_idle(stage)
    return found


def _resident(stage: Stage, pid: int, count: int) -> Series:
    name = f"server.resident_with_{count}_mb" if count else "server.resident_mb"
    beside = f"{count} sandboxes alive, each of which has answered" if count else "no sandbox alive"
    return stage.series(
        name,
        [resident_kb(pid) / 1024],
        Lifecycle.RESOURCES,
        f"resident memory of the server's own process, {beside}; its helpers are not in it",
        unit="MB",
    )


async def _memory_per_idle(stage: Stage) -> list[Series]:
    count, pid, found = stage.amounts.idle, stage.address.pid, []
    await asyncio.sleep(_SETTLE_S)
    before = unused_kb()
    async with Crowd(stage) as crowd:
        await crowd.grow(min(count, _RESIDENT_WITH))
        silent = await crowd.silent()
        if pid is not None:
            found.append(_resident(stage, pid, crowd.size))
        grown_from = crowd.size
        await crowd.grow(count)
        silent += await crowd.silent(grown_from)
        await asyncio.sleep(_SETTLE_S)
        taken = before - unused_kb()
    what = (
        f"fall of MemAvailable, and of what the kernel keeps free for each processor, with {count} sandboxes alive, "
        f"divided by {count}; each has answered a command"
    )
    per_one = [taken / 1024 / count]
    found.append(stage.series("memory.idle_sandbox_mb", per_one, Lifecycle.RESOURCES, what, unit="MB", failures=silent))
    return found


class Crowd:
    """Sandboxes that are alive until the block ends. `async with Crowd(stage) as crowd`."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._members: list[Inside] = []

    @property
    def size(self) -> int:
        return len(self._members)

    async def __aenter__(self) -> Crowd:
        return self

    async def __aexit__(self, *exc: object) -> None:
        members, self._members = self._members, []

        async def end(caller: RawCaller, at: int) -> None:
            for member in members[at::_AT_ONCE]:
                await caller.kill(member)

        await self._together(end)

    def oldest(self) -> Inside:
        return self._members[0]

    async def grow(self, size: int) -> None:
        """Until so many are alive. `CommandFailure` when they cannot be had."""
        missing = size - self.size

        async def make(caller: RawCaller, at: int) -> None:
            for _ in range(at, missing, _AT_ONCE):
                self._members.append((await caller.create())[0])

        try:
            await self._together(make)
        except CommandFailure as error:
            raise CommandFailure(f"only {self.size} of {size} sandboxes could be made: {error}") from error

    async def silent(self, first: int = 0) -> int:
        """How many of those from `first` on do not answer a command."""
        members, silent = self._members[first:], 0

        async def ask(caller: RawCaller, at: int) -> None:
            nonlocal silent
            for member in members[at::_AT_ONCE]:
                try:
                    await caller.echo(member)
                except CommandFailure:
                    silent += 1

        await self._together(ask)
        return silent

    async def _together(self, work: _Work) -> None:
        async with children() as workers:
            tasks = [workers.start(self._alone(work, at), name=f"crowd {at}") for at in range(_AT_ONCE)]
            await asyncio.gather(*tasks)

    async def _alone(self, work: _Work, at: int) -> None:
        async with RawCaller(self._stage) as caller:
            await work(caller, at)
