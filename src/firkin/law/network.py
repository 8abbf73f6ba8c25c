"""What a sandbox may reach, with whose words, and who may reach it.

Outbound, in this order: never the host, other sandboxes, private, link-local and
metadata addresses, unless `allow_out` names them by address; then what `allow_out`
names; then not what `deny_out` names; then everything if `internet`, else nothing.
A name in `allow_out` is what TLS and HTTP say they want (SNI, Host), looked up by us,
never what the sandbox says its address is.

A policy is a value: two that are equal allow the same.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from firkin.law.errors import InvalidReason, InvalidSpec

MOST_ENTRIES = 256
MOST_RULES = 64
MOST_HEADERS = 32
EVERYWHERE = "0.0.0.0/0"
_LABEL = r"(?!-)[a-z0-9_-]{1,63}(?<!-)"
_DOMAIN = re.compile(rf"(?=.{{1,253}}$)(?:\*\.)?{_LABEL}(?:\.{_LABEL})*")
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")


@dataclass(frozen=True, slots=True, kw_only=True)
class HeaderRule:
    """Requests to `domain` (``api.example.com``, ``*.example.com``) go out with these headers in place of their own.

    A value may hold ``${e2b.secrets.NAME}``: the secret goes out, and is never seen inside.
    """

    domain: str
    headers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_domain(self.domain)
        if not 0 < len(self.headers) <= MOST_HEADERS:
            raise _invalid(
                f"a rule for {self.domain!r} has {len(self.headers)} headers; 1 to {MOST_HEADERS} are allowed"
            )
        for name, value in self.headers.items():
            if _HEADER.fullmatch(name) is None:
                raise _invalid(f"{name[:64]!r} is no name of a header")
            if any(letter in value for letter in "\r\n\0") or len(value) > 8192:
                raise _invalid(f"the value for the header {name} must be one line of at most 8192 characters")


@dataclass(frozen=True, slots=True, kw_only=True)
class EgressProxy:
    """A SOCKS5 proxy of the caller's own, through which everything goes. `tls` speaks TLS to it first."""

    address: str
    username: str = ""
    password: str = field(default="", repr=False)
    tls: bool = False
    tls_server_name: str = ""
    tls_ca: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkPolicy:
    """See above. `dns_servers` are asked in place of the host's; `https_ports` are inspected like 443.

    `peers` are sandboxes that it may reach and that may reach it, where their policies
    name it as well. `ports` are those that can be reached from outside through the
    server; None is all.
    """

    internet: bool = False
    allow_out: tuple[str, ...] = ()
    deny_out: tuple[str, ...] = ()
    rules: tuple[HeaderRule, ...] = ()
    egress_proxy: EgressProxy | None = None
    dns_servers: tuple[str, ...] = ()
    https_ports: tuple[int, ...] = ()
    peers: tuple[str, ...] = ()
    ports: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("allow_out", "deny_out", "rules", "dns_servers", "https_ports", "peers"):
            most = MOST_RULES if name == "rules" else MOST_ENTRIES
            if len(getattr(self, name)) > most:
                raise _invalid(f"{name} has {len(getattr(self, name))} entries; at most {most} are allowed")
        for text in self.deny_out:
            if network_of(text) is None:
                raise _invalid(f"invalid denied CIDR {text[:64]}")
        for text in self.allow_out:
            if network_of(text) is None:
                check_domain(text)
        if self.allowed_domains and EVERYWHERE not in self.deny_out and self.internet:
            raise _invalid(f"names in allow_out mean something only with {EVERYWHERE} in deny_out; add it")
        for text in self.dns_servers:
            if _address_of(text) is None:
                raise _invalid(f"{text[:64]!r} is no address of a DNS server")
        for port in (*self.https_ports, *(self.ports or ())):
            if not 0 < port < 65536:
                raise _invalid(f"port {port} is not 1…65535")

    @property
    def allowed_networks(self) -> tuple[str, ...]:
        """The addresses among `allow_out`, each as a network."""
        return tuple(found for text in self.allow_out if (found := network_of(text)) is not None)

    @property
    def denied_networks(self) -> tuple[str, ...]:
        return tuple(found for text in self.deny_out if (found := network_of(text)) is not None)

    @property
    def allowed_domains(self) -> tuple[str, ...]:
        """The names among `allow_out`; ``*`` is every one."""
        return tuple(text.lower() for text in self.allow_out if network_of(text) is None)

    @property
    def is_finer(self) -> bool:
        """Whether it says more than internet or no internet."""
        return self != NetworkPolicy(internet=self.internet)

    @property
    def goes_out(self) -> bool:
        """Whether anything outside can be reached at all."""
        return self.internet or bool(self.allow_out or self.peers)

    @property
    def is_inspected(self) -> bool:
        """Whether addresses are not enough to tell what is allowed: names, headers or a proxy are asked for."""
        return bool(self.allowed_domains or self.rules or self.egress_proxy or self.dns_servers)


def network_of(text: str) -> str | None:
    """An IPv4 or IPv6 address or network in its usual form, None for what is neither."""
    try:
        return str(ipaddress.ip_network(text, strict=False))
    except ValueError:
        return None


def check_domain(text: str) -> None:
    """`InvalidSpec` unless it is a name, ``*.name`` or ``*``."""
    if text != "*" and _DOMAIN.fullmatch(text.lower()) is None:
        raise _invalid(f"{text[:128]!r} is neither an address, a network nor a domain")


def _address_of(text: str) -> str | None:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return None


def _invalid(detail: str) -> InvalidSpec:
    return InvalidSpec("check network policy", InvalidReason.INVALID_NETWORK, detail)
