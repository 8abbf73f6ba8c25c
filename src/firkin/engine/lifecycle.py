"""The verbs that callers have over sandboxes. Each takes its turn at the sandbox and then goes on to its end."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta

from firkin.engine import creation, endings, networks, snapshots
from firkin.engine.histories import history
from firkin.engine.ledger import Why
from firkin.engine.node import Node
from firkin.engine.roster import Resident
from firkin.engine.sandbox_requests import deadline_after
from firkin.engine.substrate import substrate
from firkin.law.errors import InvalidReason, InvalidSpec, NotFound, ResourceKind, SandboxUnavailable, WrongState
from firkin.law.ids import SandboxId
from firkin.law.isolation import IsolationReport
from firkin.law.lifecycle_events import DEADLINE_SET
from firkin.law.network import NetworkPolicy
from firkin.law.network_use import SandboxNetwork
from firkin.law.processes import Signal, signal_number
from firkin.law.sandboxes import (
    AttachOptions,
    DeleteOptions,
    Graceful,
    KillSignal,
    SandboxDeadline,
    SandboxFilter,
    SandboxHistory,
    SandboxInfo,
    SandboxSpec,
    StopMode,
)
from firkin.law.states import EndCause, SandboxState

MAX_GRACE_S = 300.0
LOOK_WITHIN_S = 10.0


class LocalSandboxes:
    """The `SandboxControl` of the engine."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def create(self, spec: SandboxSpec) -> SandboxInfo:
        return await creation.create(self._node, spec)

    async def attach(self, sandbox_id: SandboxId, options: AttachOptions) -> SandboxInfo:
        resident = await self._node.roster.meet("attach", sandbox_id)
        if options.require_running:
            resident.require_running("attach")
        if resident.info.state is SandboxState.RUNNING:
            try:
                await self._node.links.ping(resident)
            except SandboxUnavailable:
                await self._look_again(resident, options)
        return resident.info

    async def _look_again(self, resident: Resident, options: AttachOptions) -> None:
        """A pause and an end cut the connection before the record says so: what it is now shows after their turn."""
        async with resident.turn("attach"):
            await self._still_here(resident, "attach")
            if options.require_running:
                resident.require_running("attach")
            if resident.info.state is SandboxState.RUNNING:
                await self._node.links.ping(resident)

    async def inspect(self, sandbox_id: SandboxId) -> SandboxInfo:
        return (await self._node.roster.meet("inspect sandbox", sandbox_id)).info

    async def list(self, filter: SandboxFilter) -> Sequence[SandboxInfo]:
        chosen = [resident.info for resident in self._node.roster if filter.matches(resident.info)]
        return sorted(chosen, key=lambda info: info.created_at, reverse=True)

    async def stop(self, sandbox_id: SandboxId, mode: StopMode) -> SandboxInfo:
        grace_s = mode.grace_s if isinstance(mode, Graceful) else mode.seconds
        if not 0 <= grace_s <= MAX_GRACE_S:
            raise InvalidSpec(
                "stop sandbox",
                InvalidReason.INVALID_TIMEOUT,
                f"the grace is {grace_s:g} s; it must be between 0 and {MAX_GRACE_S:.0f}",
            )
        return await self._node.acts.run(self._stop(sandbox_id, grace_s), name=f"stop {sandbox_id}")

    async def kill(self, sandbox_id: SandboxId, signal: KillSignal) -> SandboxInfo:
        signal_number(signal)
        return await self._node.acts.run(self._kill(sandbox_id, signal), name=f"kill {sandbox_id}")

    async def delete(self, sandbox_id: SandboxId, options: DeleteOptions) -> None:
        await self._node.acts.run(self._delete(sandbox_id, options), name=f"delete {sandbox_id}")

    async def update_deadline(self, sandbox_id: SandboxId, deadline: SandboxDeadline) -> SandboxInfo:
        return await self._node.acts.run(self._renew(sandbox_id, deadline), name=f"renew {sandbox_id}")

    async def update_network(self, sandbox_id: SandboxId, policy: NetworkPolicy) -> SandboxInfo:
        work = networks.update_network(self._node, sandbox_id, policy)
        return await self._node.acts.run(work, name=f"network of {sandbox_id}")

    async def network(self, sandbox_id: SandboxId) -> SandboxNetwork:
        return await networks.network_of(self._node, sandbox_id)

    async def isolation(self, sandbox_id: SandboxId) -> IsolationReport:
        operation = "look at the isolation"
        resident = await self._node.roster.meet(operation, sandbox_id)
        if resident.instance is None:
            raise WrongState(operation, ResourceKind.SANDBOX, sandbox_id, resident.info.state.value)
        async with substrate(operation, resident.info.driver, within_s=LOOK_WITHIN_S, sandbox_id=sandbox_id):
            return await resident.instance.isolation()

    async def _stop(self, sandbox_id: SandboxId, grace_s: float) -> SandboxInfo:
        resident = await self._node.roster.meet("stop sandbox", sandbox_id)
        async with resident.turn("stop sandbox"):
            await self._still_here(resident, "stop sandbox")
            await endings.stop(self._node, resident, grace_s)
            return resident.info

    async def _kill(self, sandbox_id: SandboxId, signal: KillSignal) -> SandboxInfo:
        resident = await self._node.roster.meet("kill sandbox", sandbox_id)
        if signal_number(signal) == signal_number(Signal.KILL):
            resident.hurry.set()
        async with resident.turn("kill sandbox"):
            await self._still_here(resident, "kill sandbox")
            why = Why.ended(EndCause.REQUESTED, actor="caller", detail="killed")
            if signal_number(signal) != signal_number(Signal.KILL) and resident.info.state is SandboxState.RUNNING:
                await endings.signal_all(self._node, resident, signal, why)
            await endings.kill(self._node, resident, why)
            return resident.info

    async def history(self, sandbox_id: SandboxId) -> SandboxHistory:
        return await history(self._node, sandbox_id)

    async def _delete(self, sandbox_id: SandboxId, options: DeleteOptions) -> None:
        resident = await self._node.roster.meet("delete sandbox", sandbox_id)
        if options.force:
            resident.hurry.set()
        async with resident.turn("delete sandbox"):
            await self._still_here(resident, "delete sandbox")
            detail = "deleted" if options.actor == DeleteOptions().actor else f"killed by {options.actor}"
            why = Why.ended(EndCause.REQUESTED, actor=options.actor, detail=detail)
            await endings.delete(self._node, resident, why, force=options.force)
        if options.delete_snapshots:
            for snapshot_id in self._node.snapshots.of_sandbox(sandbox_id):
                with suppress(NotFound):  # somebody else was first
                    await snapshots.delete(self._node, snapshot_id)

    async def _renew(self, sandbox_id: SandboxId, deadline: SandboxDeadline) -> SandboxInfo:
        operation = "set the deadline"
        node = self._node
        resident = await node.roster.meet(operation, sandbox_id)
        async with resident.turn(operation):
            await self._still_here(resident, operation)
            if resident.info.state is not SandboxState.RUNNING:
                raise WrongState(operation, ResourceKind.SANDBOX, sandbox_id, resident.info.state.value)
            now = node.clock.now()
            lifetime_s = deadline_after(deadline, node.policies.deadlines, now)
            before = resident.info
            deadline_at = None if lifetime_s is None else now + timedelta(seconds=lifetime_s)
            resident.info = replace(before, deadline_at=deadline_at)
            until = "none" if deadline_at is None else deadline_at.strftime("%Y-%m-%dT%H:%M:%SZ")
            try:
                await node.ledger.remark(resident, why=Why(cause=f"{DEADLINE_SET}{until}"))
            except BaseException:
                resident.info = before
                raise
            resident.renewals += 1
            node.deadlines.arm(sandbox_id, lifetime_s)
            return resident.info

    async def _still_here(self, resident: Resident, operation: str) -> None:
        await self._node.roster.check_present(operation, resident)
