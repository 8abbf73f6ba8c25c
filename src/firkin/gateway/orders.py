"""What the server tells a gateway, as JSON over their own socket: the only source of what it knows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any  # the JSON edge: both ends are this module

from firkin.law.network import EgressProxy, HeaderRule, NetworkPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxOrder:
    """What holds for the sandbox at `address`. `secrets` are the values that its rules name.

    `authority` and `authority_key` (PEM) sign the certificates that it is shown; empty without rules.
    """

    sandbox_id: str
    address: str
    policy: NetworkPolicy
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    authority: str = ""
    authority_key: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What a gateway begins with. Numbers of descriptors are those that it was started with.

    `resolvers` are UDP sockets, each connected to a resolver of the host, outside the
    gateway's own network. `trust` is PEM text of authorities beside the system's; `filter` a compiled seccomp program.
    """

    user: int
    network: int
    tcp: int
    dns_udp: int
    dns_tcp: int
    resolvers: tuple[int, ...]
    trust: str = ""
    filter: str = ""
    confined: bool = True


def encode_setup(setup: Setup) -> bytes:
    return json.dumps(asdict(setup)).encode()


def decode_setup(raw: bytes) -> Setup:
    body = json.loads(raw)
    return Setup(**{**body, "resolvers": tuple(body["resolvers"])})


def encode_order(order: SandboxOrder) -> dict[str, Any]:
    policy = order.policy
    return {
        "sandbox_id": order.sandbox_id,
        "address": order.address,
        "secrets": dict(order.secrets),
        "authority": order.authority,
        "authority_key": order.authority_key,
        "policy": {
            "internet": policy.internet,
            "allow_out": list(policy.allow_out),
            "deny_out": list(policy.deny_out),
            "rules": [{"domain": rule.domain, "headers": dict(rule.headers)} for rule in policy.rules],
            "egress_proxy": None if policy.egress_proxy is None else asdict(policy.egress_proxy),
            "dns_servers": list(policy.dns_servers),
            "https_ports": list(policy.https_ports),
        },
    }


def decode_order(body: Mapping[str, Any]) -> SandboxOrder:
    policy = body["policy"]
    proxy = policy["egress_proxy"]
    return SandboxOrder(
        sandbox_id=body["sandbox_id"],
        address=body["address"],
        secrets=body["secrets"],
        authority=body["authority"],
        authority_key=body["authority_key"],
        policy=NetworkPolicy(
            internet=policy["internet"],
            allow_out=tuple(policy["allow_out"]),
            deny_out=tuple(policy["deny_out"]),
            rules=tuple(HeaderRule(**rule) for rule in policy["rules"]),
            egress_proxy=None if proxy is None else EgressProxy(**proxy),
            dns_servers=tuple(policy["dns_servers"]),
            https_ports=tuple(policy["https_ports"]),
        ),
    )
