"""The server's end of the mason: grounds that are laid while a launcher forks who will stand on them."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from firkin.drivers.boxes.launcher import Launcher, LaunchFailed
from firkin.drivers.boxes.orders import LaunchOrder
from firkin.drivers.ground.helper_process import HelperDied
from firkin.law.errors import FirkinError
from firkin.lifetimes import Children, finish

_SETTLED_WITHIN_S = 30.0
_Failure = FirkinError | HelperDied


class Mason(Launcher):
    """Runs `module`. An order is answered when the ground is laid, and has been handed over."""

    def __init__(self, module: str, setup: dict[str, Any]) -> None:
        super().__init__(module, setup)
        self._laying = Children()

    @asynccontextmanager
    async def laying(self, order: LaunchOrder, fds: Sequence[int], owned: Sequence[int]) -> AsyncIterator[int]:
        """Yields the socket at which the ground of `order` arrives, for the process that needs it.

        `fds` are the mason's, and those of them that are `owned` are closed in any
        case. When the block fails, nothing new is made any more after it; if that
        was because there was no ground, the reason is raised instead.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        work = self._laying.start(self._lay(order, [ours.detach(), *fds], owned), name=f"ground {order.sandbox_id}")
        try:
            with theirs:
                yield theirs.fileno()
        except BaseException as error:
            failure = await finish(_outcome(work), within_s=_SETTLED_WITHIN_S)
            if failure is not None and isinstance(error, LaunchFailed):
                raise failure from error
            raise
        failure = await work
        if failure is not None:
            raise failure

    async def _lay(self, order: LaunchOrder, fds: list[int], owned: Sequence[int]) -> _Failure | None:
        """What it failed with: whoever waits for the ground raises it."""
        try:
            await self.fork(order, fds)
        except (FirkinError, HelperDied) as failure:
            return failure
        finally:
            for fd in (fds[0], *owned):
                os.close(fd)
        return None

    async def aclose(self) -> None:
        await super().aclose()
        await self._laying.aclose()


async def _outcome(work: asyncio.Task[_Failure | None]) -> _Failure | None:
    await asyncio.wait({work})
    return None if work.cancelled() else work.result()
