"""What may be asked of a sandbox: refused here before anything is done."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from firkin.engine.stored_forms import written
from firkin.law.backend import TierStatus
from firkin.law.capabilities import Capabilities, CapabilityName, Permanent
from firkin.law.errors import InvalidReason, InvalidSpec, UnsupportedCapability
from firkin.law.network import NetworkPolicy
from firkin.law.policies import DeadlinePolicy
from firkin.law.reach import Reach
from firkin.law.sandboxes import FromSnapshot, Never, OnTimeout, SandboxDeadline, SandboxSpec, Timeout

INSPECTION = Permanent("this driver has no egress gateways, which domains, rules, proxies and DNS servers need")
_PRIVATE_DNS = Permanent("a private address in dns_servers that allow_out does not name")
_PEERS_LED = Permanent("peers beside domains, rules, a proxy or DNS servers: only the gateway is reached then")
_HTTPS_PORTS = Permanent("https_ports without domains or rules: nobody reads names then")
ONLY_IPV4 = Permanent("sandboxes have no IPv6, so allow_out can name IPv4 addresses only")
_CREATE = "create a sandbox"


def check_sandbox(spec: SandboxSpec, tier: TierStatus) -> None:
    """`UnsupportedCapability` for each wish that the tier would not honour."""
    offer = tier.capabilities
    if isinstance(spec.source, FromSnapshot):
        offer.require(_CREATE, CapabilityName.SNAPSHOT_RESTORE)
    check_network(_CREATE, spec.network, offer, gateways=tier.has_gateways)
    if spec.volumes and not tier.mounts_volumes:
        name = tier.isolation or tier.driver
        reason = Permanent(f"sandboxes of the tier {name} cannot mount this runtime's volumes; ask for another tier")
        raise UnsupportedCapability(_CREATE, CapabilityName.RUNTIME_CREATE, reason)
    if spec.lifecycle.on_timeout is OnTimeout.PAUSE:
        offer.require(_CREATE, CapabilityName.PAUSE_CAPTURE)
    if spec.lifecycle.auto_resume:
        offer.require(_CREATE, CapabilityName.PAUSE_RESUME)
    offer.require(_CREATE, CapabilityName.RUNTIME_CREATE)


def check_network(operation: str, policy: NetworkPolicy, offer: Capabilities, *, gateways: bool) -> None:
    """`UnsupportedCapability` for what nobody here would enforce. `gateways`: the driver has some.

    `InvalidSpec` for a policy that could not be kept.
    """
    written(operation, policy)
    if policy.is_finer:
        offer.require(operation, CapabilityName.NETWORK_POLICY)
    unenforced = (
        (INSPECTION, policy.is_inspected and not gateways),
        (_PRIVATE_DNS, not all(map(_may_be_asked(policy), policy.dns_servers))),
        (_PEERS_LED, policy.is_inspected and bool(policy.peers)),
        (_HTTPS_PORTS, bool(policy.https_ports) and not policy.is_inspected),
    )
    for reason, asked in unenforced:
        if asked:
            raise UnsupportedCapability(operation, CapabilityName.NETWORK_POLICY, reason)
    if any(":" in network for network in policy.allowed_networks):
        raise UnsupportedCapability(operation, CapabilityName.NETWORK_POLICY, ONLY_IPV4)


def _may_be_asked(policy: NetworkPolicy) -> Callable[[str], bool]:
    """Whether a DNS server is public, or named in `allow_out`."""
    within = Reach.of(NetworkPolicy(internet=True, allow_out=policy.allowed_networks))
    return lambda server: ":" in server or within.holds(server)


def deadline_after(wish: SandboxDeadline | None, policy: DeadlinePolicy, now: datetime) -> float | None:
    """Seconds from now, None for never. `InvalidSpec` above the operator's limit."""
    seconds = _wished(wish, policy, now)
    most = policy.max_timeout_s
    if most is not None and (seconds is None or seconds > most):
        asked = "no deadline" if seconds is None else f"{seconds:g} s"
        raise InvalidSpec(
            "set the deadline",
            InvalidReason.INVALID_TIMEOUT,
            f"{asked} was asked for; this runtime allows at most {most:g} s",
        )
    return seconds


def _wished(wish: SandboxDeadline | None, policy: DeadlinePolicy, now: datetime) -> float | None:
    if wish is None:
        return policy.default_timeout_s
    if isinstance(wish, Never):
        return None
    if isinstance(wish, Timeout):
        return wish.seconds
    return max(0.0, (wish.when - now).total_seconds())
