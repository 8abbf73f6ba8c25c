"""Which IPv4 addresses a policy lets a sandbox reach: the order of `firkin.law.network`, worked out once.

All that a policy says by address comes down to one set of addresses, so that
whoever enforces it compares a packet with one set and has no order to get wrong.
`denial` takes the same decision step by step, and says which rule it was.

IPv6 is reached by nobody. Domains say nothing here: who reads names decides about them.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from firkin.law.network import NetworkPolicy

SANDBOXES = "198.18.0.0/15"
"""Where sandboxes and the host's ends of their wires have their addresses. Only a peer there is ever reached."""

LINK_LOCAL = "169.254.0.0/16"
"""Where clouds give every machine its own metadata, with credentials in it."""

# Special-purpose address blocks (IANA registry), which hold hosts, metadata services and neighbours.
PRIVATE = (
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    LINK_LOCAL,
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.168.0.0/16",
    SANDBOXES,
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/3",
)

# No policy opens these: this host as it calls itself, every sandbox, and what is no single host's address.
NEVER = ("0.0.0.0/8", "127.0.0.0/8", SANDBOXES, "224.0.0.0/3")

NO_INTERNET = "no internet access"
PRIVATE_ADDRESS = "a private or link-local address that allow_out does not name"
OTHER_SANDBOX = "another sandbox or the host"
NO_HOST = "not an address that can be reached"

Span = tuple[int, int]
"""From the first to the last address, both included."""


@dataclass(frozen=True, slots=True)
class Reach:
    """The addresses that may be reached, as spans in order that neither touch nor overlap."""

    spans: tuple[Span, ...]

    @classmethod
    def of(cls, policy: NetworkPolicy, peers: Collection[str] = ()) -> Reach:
        """`peers` are the addresses of those that the policy names and that name it as well."""
        named = [network for text in policy.allowed_networks if (network := _ipv4(text))]
        public = _spans(named) + (_without(_EVERYWHERE, _spans(_denied(policy))) if policy.internet else [])
        private = _without(_spans(network for network in named if _is_private(network)), _NEVER)
        return cls(tuple(_merged([*_without(public, _PRIVATE), *private, *_spans(map(_network, peers))])))

    @classmethod
    def internet(cls) -> Reach:
        """Every public address."""
        return _INTERNET

    @classmethod
    def joined(cls, reaches: Iterable[Reach]) -> Reach:
        """What any of them holds."""
        return cls(tuple(_merged(span for reach in reaches for span in reach.spans)))

    @property
    def is_nothing(self) -> bool:
        return not self.spans

    @property
    def is_plain(self) -> bool:
        """Whether it is just the internet: every public address and no other."""
        return self == _INTERNET

    def holds(self, address: str) -> bool:
        number = int(ipaddress.IPv4Address(address))
        return any(first <= number <= last for first, last in self.spans)


def denial(policy: NetworkPolicy, address: str, peers: Collection[str] = ()) -> str:
    """The rule that keeps a sandbox from the IPv4 `address`; empty when none does."""
    wanted = ipaddress.IPv4Address(address)
    named = [network for text in policy.allowed_networks if (network := _ipv4(text)) and wanted in network]
    if address in peers:
        return ""
    if wanted in _network(SANDBOXES):
        return OTHER_SANDBOX
    if any(wanted in network for network in map(_network, NEVER)):
        return NO_HOST
    if any(wanted in network for network in map(_network, PRIVATE)):
        return "" if any(map(_is_private, named)) else PRIVATE_ADDRESS
    if named:
        return ""
    for text in policy.deny_out:
        if wanted in ipaddress.ip_network(text, strict=False):
            return f"deny_out {text}"
    return "" if policy.internet else NO_INTERNET


def _is_private(network: ipaddress.IPv4Network) -> bool:
    """Whether it names private addresses: a wider network, such as 0.0.0.0/0, names none of them."""
    return any(network.subnet_of(block) for block in map(_network, PRIVATE))


def _denied(policy: NetworkPolicy) -> Iterable[ipaddress.IPv4Network]:
    return (network for text in policy.denied_networks if (network := _ipv4(text)))


def _ipv4(text: str) -> ipaddress.IPv4Network | None:
    found = ipaddress.ip_network(text)
    return found if isinstance(found, ipaddress.IPv4Network) else None


def _network(text: str) -> ipaddress.IPv4Network:
    return ipaddress.IPv4Network(text)


def _spans(networks: Iterable[ipaddress.IPv4Network]) -> list[Span]:
    return _merged((int(network.network_address), int(network.broadcast_address)) for network in networks)


def _merged(spans: Iterable[Span]) -> list[Span]:
    merged: list[Span] = []
    for first, last in sorted(spans):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return merged


def _without(spans: Iterable[Span], taken: Collection[Span]) -> list[Span]:
    """What is left of `spans` without `taken`, which must be in order."""
    left: list[Span] = []
    for first, last in _merged(spans):
        for start, end in taken:
            if end < first or start > last:
                continue
            if start > first:
                left.append((first, start - 1))
            first = end + 1
        if first <= last:
            left.append((first, last))
    return left


_EVERYWHERE: list[Span] = [(0, 0xFFFFFFFF)]
_PRIVATE = _spans(map(_network, PRIVATE))
_NEVER = _spans(map(_network, NEVER))
_INTERNET = Reach(tuple(_without(_EVERYWHERE, _PRIVATE)))
