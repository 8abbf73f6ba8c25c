"""Stopping every process of a box, letting it run on, and giving a stopped one's memory back.

The kernel stops a process when it next returns to user mode, and offers nothing
to wait on, so its answer is asked for, from every 0.2 ms on. A box that does not
stop in time (a process in the middle of I/O that hangs) is let go again.

Version 1 asks each process once (Linux 6.18): a parent that goes to wait for the
child of its vfork just after it was asked, and whose child stands still already,
would never stop. So the order is repeated with each look.
"""

from __future__ import annotations

import asyncio
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from firkin.host.cgroups import Trees
from firkin.law.errors import BackendFailure, SandboxUnavailable
from firkin.law.ids import SandboxId
from firkin.lifetimes import children, finish

STOPS_WITHIN_S = 5.0
_RECLAIM_WITHIN_S = 120.0
_LONGEST_PAUSE_S = 0.005
_WRITE = 'value=$1; shift; for file; do echo "$value" > "$file"; done'


class Freezer:
    """The freezer of one box. One change at a time; whoever comes meanwhile waits."""

    def __init__(self, trees: Trees, box: SandboxId) -> None:
        self._trees = trees
        self._box = box
        self._changing = asyncio.Lock()
        self._released = False
        self._spilled = self.frozen  # by an earlier server, which may have let it into swap
        self._reclaim_over: asyncio.Event | None = None

    @property
    def frozen(self) -> bool:
        return self._trees.is_frozen(self._box)

    async def freeze(self) -> None:
        """Raises `BackendFailure` when its processes do not stop, `SandboxUnavailable` when there is no box."""
        async with self._changing:
            await self._stop()

    async def thaw(self) -> None:
        """Raises as `freeze` does."""
        async with self._changing:
            await self._run_on()

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Frozen for as long as the block lasts; afterwards as it was before."""
        async with self._changing:
            before = self.frozen
            await self._stop()
            try:
                yield
            finally:
                if not before:
                    with suppress(SandboxUnavailable):  # destroyed meanwhile: it is no longer ours to thaw
                        await finish(self._run_on(), within_s=2 * STOPS_WITHIN_S)

    def release(self) -> None:
        """Let a box run on that is about to be killed: a frozen process does not take even SIGKILL (version 1)."""
        self._released = True
        self._end_reclaim()
        with suppress(OSError):
            self._trees.freeze(self._box, False)

    async def _stop(self) -> None:
        if self.frozen:
            return
        try:
            await self._become(True)
        except BaseException:
            with suppress(OSError):
                self._trees.freeze(self._box, False)
            raise

    async def _run_on(self) -> None:
        self._end_reclaim()
        if self._spilled:
            self._spilled = False
            self._trees.forbid_swap(self._box)
        await self._become(False)

    async def _become(self, frozen: bool) -> None:
        verb = "freeze" if frozen else "thaw"
        pause_s = 0.0
        try:
            self._require_held(verb)
            self._trees.freeze(self._box, frozen)
            async with asyncio.timeout(STOPS_WITHIN_S):
                while self.frozen is not frozen:
                    await asyncio.sleep(pause_s)
                    self._require_held(verb)
                    self._trees.freeze(self._box, frozen)
                    pause_s = min(_LONGEST_PAUSE_S, pause_s + 0.0002)
        except TimeoutError as error:
            detail = f"its processes did not follow within {STOPS_WITHIN_S:g} s"
            raise BackendFailure(verb, "control groups", detail) from error
        except OSError as error:
            raise SandboxUnavailable(verb, self._box, "its processes have ended") from error

    def _require_held(self, verb: str) -> None:
        if self._released:
            raise SandboxUnavailable(verb, self._box, "it was killed meanwhile")

    async def reclaim(self) -> None:
        """Push the memory of a frozen box out, until a thaw ends that. Never fails.

        A process of its own does it, because that can be killed: in a thread of
        ours the kernel would go on against a guest that runs again.
        """
        if self._reclaim_over is not None or not self.frozen:
            return
        self._reclaim_over = asyncio.Event()
        self._spilled = True
        self._trees.allow_swap(self._box)
        try:
            async with asyncio.timeout(_RECLAIM_WITHIN_S):
                await self._push_out(self._reclaim_over)
        except (OSError, TimeoutError):  # advice to the kernel, no more
            return
        finally:
            self._reclaim_over = None

    async def _push_out(self, over: asyncio.Event) -> None:
        value, files = self._trees.reclaiming(self._box)
        process = await asyncio.create_subprocess_exec(
            "/bin/sh", "-c", _WRITE, "sh", value, *files, stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL, env={}
        )
        try:
            async with children() as work:
                ended = work.start(process.wait(), name="reclaim")
                thawed = work.start(over.wait(), name="reclaim over")
                await asyncio.wait({ended, thawed}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await finish(_killed(process), within_s=STOPS_WITHIN_S)

    def _end_reclaim(self) -> None:
        if self._reclaim_over is not None:
            self._reclaim_over.set()


async def _killed(process: Process) -> None:
    if process.returncode is None:
        with suppress(ProcessLookupError):
            process.kill()
    await process.wait()
