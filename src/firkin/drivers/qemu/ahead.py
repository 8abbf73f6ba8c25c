"""Machines that are woken before anybody asks, for the templates and shapes that were asked for last.

One that waits has nothing of a sandbox but its name: a closed network, no identity
but a passing one, and no program but the agent. It has run a shell once, so that
what an emulator translates, and what a kernel reads and maps, is there; then it
stands still, and takes no processor. Whoever gets it has it go on, and told whose it
is: its time, its randomness, its names, its address and what it may reach.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any

from firkin.drivers.ground.shelf import Bounds, Shelf
from firkin.drivers.qemu.instance import QemuInstance
from firkin.drivers.qemu.launches import names_in
from firkin.drivers.qemu.stores import Store
from firkin.host.fittings import REHEARSAL
from firkin.host.meminfo import meminfo
from firkin.law.driver import BootPlan, RootFilesystem
from firkin.law.errors import FirkinError
from firkin.law.ids import SandboxId
from firkin.law.network import NetworkPolicy
from firkin.law.resources import GIB, SandboxResources
from firkin.lifetimes import Children, children, finish
from firkin.wire import codec
from firkin.wire.frames import ERROR, OPEN, RESULT, FrameReader, WireError, frame

Wake = Callable[[BootPlan], Awaitable[tuple[QemuInstance, Store | None]]]
"""Makes a machine that is nobody's, and says which store it was woken from."""
End = Callable[[QemuInstance], Coroutine[Any, Any, None]]
Rested = Callable[[QemuInstance, Store], Awaitable[None]]

LEAST = 2
_END_WITHIN_S = 30.0
_KINDS = 2
_UNASKED_S = 900.0
_REHEARSAL_WITHIN_S = 10.0
_START: codec.Object = {"op": "start", "env": {}, "cwd": "/", "user": "", "stdin": False, "pty": None}
_SHELLS = ("/bin/bash", "/bin/sh")  # the one that clients' commands run in, or else the one that images have
_LEFT_FREE = GIB  # of the host's memory, beside twice what the machine could take


@dataclass(frozen=True, slots=True)
class MachineKind:
    """Machines of one kind go on from the same store. `text` is what makes two the same."""

    text: str
    root: RootFilesystem = field(compare=False)
    resources: SandboxResources = field(compare=False)
    captured: str = field(compare=False)
    online: bool = field(compare=False)
    leaves: Mapping[str, int] = field(compare=False)

    @classmethod
    def of(cls, plan: BootPlan) -> MachineKind:
        leaves = plan.leaves()
        text = repr((plan.root, plan.resources, plan.captured, sorted(leaves)))
        return cls(text, plan.root, plan.resources, plan.captured, is_online(plan.network), leaves)

    def serves(self, root: RootFilesystem, resources: SandboxResources) -> bool:
        return (self.root, self.resources) == (root, resources)

    def plan(self, sandbox_id: SandboxId) -> BootPlan:
        """How one is woken that is nobody's yet."""
        return BootPlan(
            sandbox_id=sandbox_id,
            root=self.root,
            resources=self.resources,
            hostname=str(sandbox_id),
            captured=self.captured,
            leaves=lambda: self.leaves,
        )


class WaitingMachine:
    """One that waits; see `ground.shelf.Waiting`."""

    __slots__ = ("_tasks", "_watching", "kind", "machine")

    def __init__(self, kind: MachineKind, machine: QemuInstance, tasks: Children) -> None:
        self.kind = kind
        self.machine = machine
        self._tasks = tasks
        self._watching: asyncio.Task[None] | None = None

    @property
    def sandbox_id(self) -> SandboxId:
        return self.machine.sandbox_id

    def watch(self, died: Callable[[], None]) -> None:
        self._watching = self._tasks.start(self._watch(died), name=f"watch {self.sandbox_id}")

    def unwatch(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            self._watching = None

    async def _watch(self, died: Callable[[], None]) -> None:
        await self.machine.ended()
        died()


class MachinesAhead:
    """Those of one driver. `wake` makes one that is nobody's, `rested` is told of each that stands still."""

    def __init__(self, most: int, wake: Wake, end: End, rested: Rested, tasks: Children) -> None:
        limits = Bounds(least=LEAST, most=most, kinds=_KINDS, unasked_s=_UNASKED_S)
        self._wake = wake
        self._end = end
        self._rested = rested
        self._tasks = tasks
        self._shelf = Shelf(self._make, self._end_waiting, limits, has_room=has_room)

    @property
    def names(self) -> set[str]:
        """Of those that are no sandbox's."""
        return self._shelf.names

    def promise(self, root: RootFilesystem, resources: SandboxResources) -> SandboxId | None:
        """See `Shelf.promise`."""
        return self._shelf.promise(lambda kind: kind.serves(root, resources))

    def launching(self, plan: BootPlan) -> AbstractContextManager[None]:
        """Around each boot."""
        self._shelf.start()
        return self._shelf.launching(MachineKind.of(plan)) if plan.repeats and not plan.continues else nullcontext()

    async def take(self, plan: BootPlan) -> QemuInstance | None:
        """The machine that was woken under the plan's name, if that fits the plan. Else none is left of it."""
        waiting = await self._shelf.take(plan.sandbox_id)
        if waiting is None or (waiting.kind == MachineKind.of(plan) and not plan.continues):
            return waiting.machine if waiting else None
        await finish(self._end_waiting(waiting), within_s=_END_WITHIN_S)
        return None

    async def end(self, sandbox_id: SandboxId) -> None:
        """The one of that name is not wanted. Idempotent."""
        await self._shelf.end(sandbox_id)

    async def aclose(self) -> None:
        await self._shelf.aclose()

    async def _make(self, sandbox_id: SandboxId, kind: MachineKind) -> WaitingMachine:
        machine, store = await self._wake(kind.plan(sandbox_id))
        try:
            await rehearse(machine, kind.leaves)
            await machine.freeze()
            if store is not None:
                await self._rested(machine, store)
        except BaseException:
            await finish(self._end(machine), within_s=_END_WITHIN_S)
            raise
        return WaitingMachine(kind, machine, self._tasks)

    async def _end_waiting(self, waiting: WaitingMachine) -> None:
        await self._end(waiting.machine)


def is_online(policy: NetworkPolicy) -> bool:
    """Whether a slot fits best whose wire leads out directly."""
    return policy.internet and not policy.is_inspected


def has_room(kind: MachineKind | BootPlan) -> bool:
    """Whether the host has memory to spare for one, and what it goes on from is there yet."""
    there = all(map(os.path.exists, (kind.root.base, *kind.root.layers, kind.captured or "/")))
    return there and meminfo("MemAvailable") >= 2 * kind.resources.memory_bytes + _LEFT_FREE


async def rehearse(machine: QemuInstance, leaves: Mapping[str, int]) -> None:
    """Have it run a shell, and make room for the files that it will be told to leave."""
    with suppress(OSError, TimeoutError, WireError, FirkinError):  # no shell, or an end that is found out elsewhere
        async with asyncio.timeout(_REHEARSAL_WITHIN_S):
            if leaves:
                blank = {path: " " * size for path, size in leaves.items()}
                await _done(machine, {"op": "introduce", "files": blank, "port": 0})
            for shell in _SHELLS:
                if await _done(machine, {**_START, "argv": [shell, "-c", REHEARSAL]}):
                    return


async def _done(machine: QemuInstance, order: codec.Object) -> bool:
    channel = await machine.dial()
    try:
        await channel.write(frame(OPEN, 1, codec.encode(order)))
        frames = FrameReader()
        while data := await channel.read():
            for kind, _, _ in frames.feed(data):
                if kind in (RESULT, ERROR):
                    return kind == RESULT
        return False
    finally:
        await channel.aclose()


async def hand_over(machine: QemuInstance, plan: BootPlan) -> None:
    """It is the plan's from now on. `OSError`, `TimeoutError`, `BackendFailure`, `SandboxUnavailable`: it is no use."""
    async with children() as beside:  # nothing runs inside before both are done
        opening = beside.start(machine.set_network(plan.network), name=f"connect {plan.sandbox_id}")
        await machine.go()
        machine.kernel_release = await machine.settle(names_in(plan))
        await opening
