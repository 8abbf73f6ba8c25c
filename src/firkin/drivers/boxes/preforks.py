"""Boxes that are half made before anybody asks: a forked process, limits, a mounted disk, devices; no root yet.

Nothing in one depends on whose it will be but the size of its disk, and each gets
its name, which is the sandbox's later, when it is made. Whoever finds none ready
has all of it made while it waits.

How many are kept follows demand: as many as were last wanted at once, within bounds.
They are made one at a time, and not while a launch is under way: that would cost
those who wait more than it gives the next ones.
"""

from __future__ import annotations

import array
import asyncio
import logging
import os
import socket
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

from firkin.drivers.boxes.orders import LaunchOrder
from firkin.drivers.ground.helper_process import HelperDied
from firkin.drivers.ground.launch_helper import Launched
from firkin.drivers.ground.slots import Slot
from firkin.law.errors import FirkinError
from firkin.law.ids import SandboxId, fresh_sandbox_id
from firkin.law.resources import SandboxResources
from firkin.lifetimes import Children, finish

LEAST, MOST = 2, 8
AFTER_S = 0.25  # whoever is gone again by then, after one command, has no use for any
_DEMAND_LASTS_S = 60.0
_PROMISE_LASTS_S = 120.0
_SIZES = 2
_LAST_STEPS_S = 0.01
_END_WITHIN_S = 30.0
_MOST_PATIENCE_S = 30.0
_log = logging.getLogger("firkin.drivers")


class Prefork:
    """One that waits. `channel` is how its process gets the rest of its order, and says how that went."""

    __slots__ = ("_taken_over", "began", "channel", "launched", "promised_at", "sandbox_id", "shape", "slot")

    def __init__(
        self,
        sandbox_id: SandboxId,
        shape: SandboxResources,
        slot: Slot,
        launched: Launched,
        began: int,
        channel: socket.socket,
    ) -> None:
        self.sandbox_id = sandbox_id
        self.shape = shape
        self.slot = slot
        self.launched = launched
        self.began = began
        self.channel = channel
        self.promised_at: float | None = None
        self._taken_over = False

    def take_over(self) -> tuple[int, Launched, int]:
        """A descriptor of its reports, its process, and when that began: the caller closes what is to be closed."""
        self._taken_over = True
        return os.dup(self.channel.fileno()), self.launched, self.began

    def give(self, order: LaunchOrder, fds: list[int]) -> None:
        """The rest of its order. `HelperDied`."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
        try:
            self.channel.sendmsg([order.encode()], rights)
        except OSError as error:
            raise HelperDied("a box made ahead") from error
        self.channel.close()

    def close(self) -> None:
        self.channel.close()
        if not self._taken_over:
            self._taken_over = True
            os.close(self.launched.pidfd)


Make = Callable[[SandboxId, SandboxResources, bool], Awaitable[Prefork]]
End = Callable[[Prefork], Coroutine[Any, Any, None]]


class Preforks:
    """Those of one driver. Use from one event loop; nothing is made before `start`."""

    def __init__(self, make: Make, end: End, *, most: int = MOST, after_s: float = AFTER_S) -> None:
        """`make` is told whether it should be online. `most` 0 makes none at all; none is made before `after_s`."""
        self._make = make
        self._end = end
        self._most = most
        self._after_s = after_s
        self._ready: dict[SandboxId, Prefork] = {}
        self._making: SandboxId | None = None
        self._ending: dict[SandboxId, asyncio.Event] = {}
        self._shapes: deque[SandboxResources] = deque([SandboxResources()], maxlen=_SIZES)
        self._online = True
        self._started = False
        self._under_way = 0
        self._launched_at = 0.0
        self._peak = 0
        self._peak_at = 0.0
        self._wanted = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._tasks = Children()

    @property
    def names(self) -> set[str]:
        """Of boxes that are no sandbox's."""
        return {*self._ready, *self._ending, *([self._making] if self._making else ())}

    def start(self) -> None:
        """Idempotent."""
        if self._most and not self._started:
            self._started = True
            self._tasks.start(self._keep(), name="preforks")
        self._wanted.set()

    def promise(self, disk_bytes: int) -> SandboxId | None:
        """The name of one with such a disk, for one boot. It is for nobody else until that, or `end`, or a while."""
        for name, prefork in self._ready.items():
            if prefork.promised_at is None and prefork.shape.disk_bytes == disk_bytes:
                prefork.promised_at = _now()
                return name
        return None

    async def take(self, sandbox_id: SandboxId) -> Prefork | None:
        """The one of that name, which is the caller's from now on. None: nothing of that name is left, either."""
        while (ending := self._ending.get(sandbox_id)) is not None:
            await ending.wait()
        return self._off_the_shelf(sandbox_id)

    async def end(self, sandbox_id: SandboxId) -> None:
        """The one of that name is not wanted. Idempotent."""
        prefork = await self.take(sandbox_id)
        if prefork is None:
            return
        self._ending[sandbox_id] = asyncio.Event()
        try:
            await finish(self._end(prefork), within_s=_END_WITHIN_S)
        finally:
            self._ending.pop(sandbox_id).set()
            self._wanted.set()

    def _off_the_shelf(self, sandbox_id: SandboxId) -> Prefork | None:
        prefork = self._ready.pop(sandbox_id, None)
        if prefork is not None:
            asyncio.get_running_loop().remove_reader(prefork.channel.fileno())
        return prefork

    @contextmanager
    def launching(self, shape: SandboxResources, *, online: bool) -> Iterator[None]:
        """Around each boot that one of these could have served, whether it did or not."""
        same_size = next((other for other in self._shapes if other.disk_bytes == shape.disk_bytes), None)
        if same_size is not None:
            self._shapes.remove(same_size)
        self._shapes.append(shape)  # the one asked for last is the last that gives way
        self._online = online
        self._under_way += 1
        self._idle.clear()
        if self._under_way >= self._peak or _now() - self._peak_at > _DEMAND_LASTS_S:
            self._peak, self._peak_at = self._under_way, _now()
        try:
            yield
        finally:
            self._under_way -= 1
            self._launched_at = _now()
            if not self._under_way:
                self._idle.set()
            self._wanted.set()

    async def aclose(self) -> None:
        await self._tasks.aclose()
        await asyncio.gather(*map(self.end, list(self._ready)))

    async def _keep(self) -> None:
        patience_s = 0.1
        await asyncio.sleep(self._after_s)
        while True:
            self._wanted.clear()
            try:
                await self._calm()
                await self._end_the_unwanted()
                while (shape := self._missing()) is not None:
                    await self._make_one(shape)
                    patience_s = 0.1
                    await self._calm()
            except (FirkinError, HelperDied, OSError, TimeoutError) as error:
                _log.warning("no box could be made ahead error=%s", error)
                await asyncio.sleep(patience_s)
                patience_s = min(2 * patience_s, _MOST_PATIENCE_S)
                continue
            try:
                async with asyncio.timeout(_DEMAND_LASTS_S):
                    await self._wanted.wait()
            except TimeoutError:
                continue

    async def _calm(self) -> None:
        """Until no launch is under way, nor one's last steps: its caller is being answered yet."""
        while self._under_way or self._launched_at + _LAST_STEPS_S > _now():
            await self._idle.wait()
            await asyncio.sleep(_LAST_STEPS_S)

    async def _make_one(self, shape: SandboxResources) -> None:
        self._making = fresh_sandbox_id()
        try:
            prefork = await self._make(self._making, shape, self._online)
            self._ready[prefork.sandbox_id] = prefork
            loop = asyncio.get_running_loop()
            loop.add_reader(prefork.channel.fileno(), self._died, prefork.sandbox_id)
        finally:
            self._making = None

    def _died(self, sandbox_id: SandboxId) -> None:
        """Nobody has ordered anything of it: its channel can only have been closed."""
        self._tasks.start(self._bury(sandbox_id), name=f"end prefork {sandbox_id}")
        asyncio.get_running_loop().remove_reader(self._ready[sandbox_id].channel.fileno())

    async def _bury(self, sandbox_id: SandboxId) -> None:
        try:
            await self.end(sandbox_id)
        except (FirkinError, OSError, TimeoutError) as error:
            _log.error("what died waiting was not removed sandbox=%s error=%s", sandbox_id, error)

    def _missing(self) -> SandboxResources | None:
        for shape in reversed(self._shapes):
            if self._count(shape) < self._depth():
                return shape
        return None

    def _count(self, shape: SandboxResources) -> int:
        return sum(other.shape.disk_bytes == shape.disk_bytes for other in self._ready.values())

    def _depth(self) -> int:
        """Of each size of disks."""
        if _now() - self._peak_at > _DEMAND_LASTS_S:
            self._peak = 0
        return min(self._most, max(LEAST, self._peak))

    async def _end_the_unwanted(self) -> None:
        """Those of a size that nobody asks for any more, those above demand, and those that were never called for."""
        sizes = {shape.disk_bytes for shape in self._shapes}
        left = dict.fromkeys(sizes, self._depth())
        for prefork in list(self._ready.values()):
            size = prefork.shape.disk_bytes
            if prefork.promised_at is not None:
                if _now() - prefork.promised_at > _PROMISE_LASTS_S:
                    await self.end(prefork.sandbox_id)
            elif left.get(size, 0) <= 0:
                await self.end(prefork.sandbox_id)
            else:
                left[size] -= 1


def _now() -> float:
    return asyncio.get_running_loop().time()
