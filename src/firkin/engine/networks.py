"""A sandbox's network while it lives: another policy, and what became of its traffic.

A policy is put in force first and recorded after. A server that dies between the
two puts the recorded one in force again at its next start; whoever asked for the
other had no answer.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import replace

from firkin.engine.ledger import Why
from firkin.engine.node import Node
from firkin.engine.roster import Resident
from firkin.engine.sandbox_requests import check_network
from firkin.engine.substrate import substrate
from firkin.law.driver import Instance
from firkin.law.errors import FirkinError, ResourceKind, WrongState
from firkin.law.ids import SandboxId
from firkin.law.lifecycle_events import NETWORK_SET
from firkin.law.logs import LogLevel, LogSource
from firkin.law.network import NetworkPolicy
from firkin.law.network_use import SandboxNetwork
from firkin.law.sandboxes import SandboxInfo
from firkin.law.states import SandboxState
from firkin.lifetimes import finish

SET_WITHIN_S = 15.0
_SET, _LOOK = "set the network policy", "look at the network"
_log = logging.getLogger("firkin.engine")


async def update_network(node: Node, sandbox_id: SandboxId, policy: NetworkPolicy) -> SandboxInfo:
    """See `SandboxControl.update_network`."""
    known = node.roster.get(sandbox_id)
    tier = await (node.tiers.default() if known is None else node.tiers.of(known.info.driver))
    check_network(_SET, policy, tier.capabilities, gateways=tier.has_gateways)
    resident = await node.roster.meet(_SET, sandbox_id)
    async with resident.turn(_SET):
        await node.roster.check_present(_SET, resident)
        if resident.info.state not in (SandboxState.RUNNING, SandboxState.PAUSED):
            raise WrongState(_SET, ResourceKind.SANDBOX, sandbox_id, resident.info.state.value)
        await node.egress.check(_SET, resident.info.owner, policy)
        await _update(node, resident, policy)
        return resident.info


async def _update(node: Node, resident: Resident, policy: NetworkPolicy) -> None:
    before = resident.info
    if resident.instance is not None:
        await put_in_force(node, resident, resident.instance, policy)
    resident.info = replace(before, network=policy)
    try:
        await _lead(node, resident)
        await node.ledger.remark(resident, why=Why(cause=f"{NETWORK_SET}{summary(policy)}"))
    except BaseException:
        resident.info = before
        if resident.instance is not None:
            with suppress(FirkinError, TimeoutError):
                work = put_in_force(node, resident, resident.instance, before.network)
                await finish(work, within_s=SET_WITHIN_S)
                await finish(node.egress.lead(_SET, resident), within_s=SET_WITHIN_S)
        raise


async def _lead(node: Node, resident: Resident) -> None:
    """To its gateway, if the policy asks for that. One that is paused trusts the gateway's authority once it runs."""
    if resident.instance is None:
        return
    await node.egress.lead(_SET, resident)
    if resident.to_trust and resident.info.state is SandboxState.RUNNING:
        await node.egress.settle(resident, await node.links.connect(resident))


async def put_in_force(node: Node, resident: Resident, instance: Instance, policy: NetworkPolicy) -> None:
    """A failure is told in the sandbox's log as well: from then on it reaches nothing."""
    try:
        async with substrate(_SET, resident.info.driver, within_s=SET_WITHIN_S, sandbox_id=resident.id):
            await instance.set_network(policy)
    except FirkinError as error:
        _log.error("network not set sandbox=%s error=%s", resident.id, error)
        node.logs.write(resident.id, LogSource.RUNTIME, str(error), LogLevel.ERROR)
        raise


async def network_of(node: Node, sandbox_id: SandboxId) -> SandboxNetwork:
    """See `SandboxControl.network`."""
    resident = await node.roster.meet(_LOOK, sandbox_id)
    instance = resident.instance
    if instance is None or resident.info.state not in (SandboxState.RUNNING, SandboxState.PAUSED):
        return SandboxNetwork(policy=resident.info.network)
    async with substrate(_LOOK, resident.info.driver, within_s=SET_WITHIN_S, sandbox_id=sandbox_id):
        use = await instance.network()
    return SandboxNetwork(policy=resident.info.network, use=use)


def summary(policy: NetworkPolicy) -> str:
    """The policy in a few words, for a journal."""
    parts = ["internet" if policy.internet else "no internet"]
    for name in ("allow_out", "deny_out", "peers", "ports"):
        entries = getattr(policy, name)
        if entries:
            shown = ", ".join(map(str, entries[:4])) + (f" and {len(entries) - 4} more" if len(entries) > 4 else "")
            parts.append(f"{name} {shown}")
    return "; ".join(parts)
