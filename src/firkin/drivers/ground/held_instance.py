"""What every instance is that stands on the ground: a process behind a slot, known by a descriptor, that ends once."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from firkin.drivers.ground.slots import Slot
from firkin.host.cgroups import Trees
from firkin.host.isolation_facts import IsolationFacts
from firkin.host.networks import SandboxNetworks
from firkin.host.syscalls import kill_pidfd
from firkin.law.driver import InstanceEnd, InstanceRef
from firkin.law.errors import BackendFailure, SandboxUnavailable
from firkin.law.ids import SandboxId
from firkin.law.network import NetworkPolicy
from firkin.law.network_use import NetworkUse, RefusedFlow
from firkin.law.states import EndCause
from firkin.lifetimes import Children
from firkin.phases import mark

_END_WITHIN_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Around:
    """What all instances of one driver share. `unled` is told of each slot that no gateway leads any more."""

    trees: Trees
    networks: SandboxNetworks
    background: Children
    unled: Callable[[Slot], Awaitable[None]]


class HeldInstance:
    """The half of the law's `Instance` that does not depend on what the process is.

    Who inherits says why it ended (`_why`), what is done before it is killed
    (`_before_kill`), and takes the rest apart (`_take_apart`) when no process is left.
    """

    def __init__(self, sandbox_id: SandboxId, ref: InstanceRef, *, pidfd: int, slot: Slot, around: Around) -> None:
        """Takes over `pidfd`."""
        self._id = sandbox_id
        self._ref = ref
        self._pidfd = pidfd
        self.slot = slot
        self._trees = around.trees
        self._networks = around.networks
        self._background = around.background
        self._unled = around.unled
        self._end: asyncio.Future[InstanceEnd] = asyncio.get_running_loop().create_future()
        self._requested = False
        self._cleaned = asyncio.Event()
        self._cleaning = False
        asyncio.get_running_loop().add_reader(pidfd, self._process_ended)

    @property
    def sandbox_id(self) -> SandboxId:
        return self._id

    @property
    def ref(self) -> InstanceRef:
        return self._ref

    async def ended(self) -> InstanceEnd:
        return await asyncio.shield(self._end)

    async def destroy(self) -> None:
        self._requested = True
        if not self._end.done():
            await self._before_kill()
            if not self._end.done():
                kill_pidfd(self._pidfd, signal.SIGKILL)
            self._trees.lift_cpu_quota(self._id)
            try:
                async with asyncio.timeout(_END_WITHIN_S):
                    await asyncio.shield(self._end)
                mark("process ended")
            except TimeoutError:  # the kernel is still at it: what is left is removed when it is done
                self._background.start(self._clean_later(), name=f"clean {self._id}")
                raise
        await self._clean()

    async def set_network(self, policy: NetworkPolicy) -> None:
        self._require_alive("set the network policy")
        await self._networks.change(self._id, policy)
        if not policy.is_inspected:
            await self._unled(self.slot)

    async def network(self) -> NetworkUse:
        self._require_alive("look at the network")
        return await self._networks.use(self._id)

    async def refused(self) -> Sequence[RefusedFlow]:
        self._require_alive("look at the network")
        return await self._networks.refused(self._id)

    def let_go(self) -> None:
        """The server ends but the sandbox lives: forget it without touching it."""
        if not self._end.done():
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._end.cancel()
        self._hang_up()
        self.slot.close()

    async def _before_kill(self) -> None:
        """Whatever it needs to end well, or at all."""

    def _hang_up(self) -> None:
        """Nothing is said to it any more."""

    async def _take_apart(self) -> None:
        """No process of it is left: neither is anything else."""
        raise NotImplementedError

    def _why(self) -> InstanceEnd:
        raise NotImplementedError

    def _decide(self) -> None:
        """Its process has ended: say why, now or soon, by `_over`."""
        self._over(self._why())

    def _over(self, why: InstanceEnd) -> None:
        if not self._end.done():
            os.close(self._pidfd)
            self._end.set_result(why)

    def _require_alive(self, operation: str) -> None:
        if self._requested or self._end.done():
            cause = self._end.result().cause if self._end.done() else EndCause.REQUESTED
            raise SandboxUnavailable(operation, self._id, cause.value)

    def _facts_of_the_ground(self, facts: IsolationFacts) -> None:
        """``limits`` and ``network``. Blocks, shortly."""
        facts.read("limits", lambda: self._trees.limits(self._id))
        try:
            facts.found["network"] = self._networks.in_force(self._id)
        except BackendFailure as error:
            facts.absent(str(error), "network")

    def _process_ended(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        self._decide()

    async def _clean_later(self) -> None:
        await asyncio.shield(self._end)
        await self._clean()

    async def _clean(self) -> None:
        """Once, however many ask."""
        if self._cleaning:
            await self._cleaned.wait()
            return
        self._cleaning = True
        await self._take_apart()
        self._cleaned.set()
