"""A sandbox's network as E2B's clients ask for it, as the law's policy, and back.

E2B's own sentences where a client may read them. What goes out only: `httpsPorts` is about ports inside.
"""

from __future__ import annotations

from collections.abc import Sequence

from firkin.e2b.exchange import Refused
from firkin.e2b.models import EgressProxyConfig, NetworkConfig, NetworkRule
from firkin.law.errors import InvalidSpec
from firkin.law.network import EVERYWHERE, EgressProxy, HeaderRule, NetworkPolicy, network_of

_NAMES_NEED_DENY = (
    "When specifying allowed domains in allow out, you must include 'ALL_TRAFFIC' in deny out"
    " to block all other traffic."
)


def requested_policy(network: NetworkConfig, *, internet: bool) -> NetworkPolicy:
    """The policy of a create. Raises `Refused` (400)."""
    allow, deny = tuple(network.allowOut or ()), tuple(network.denyOut or ())
    for text in deny:
        if network_of(text) is None:
            raise _bad(f"invalid denied CIDR {text[:64]}")
    if internet and EVERYWHERE not in deny and any(network_of(text) is None for text in allow):
        raise _bad(_NAMES_NEED_DENY)
    try:
        return NetworkPolicy(
            internet=internet,
            allow_out=allow,
            deny_out=deny,
            rules=tuple(_rule(domain, rules) for domain, rules in (network.rules or {}).items()),
            egress_proxy=None if network.egressProxy is None else _proxy(network.egressProxy),
            dns_servers=tuple(network.dnsServers or ()),
        )
    except InvalidSpec as error:
        raise _bad(str(error)) from error


def wire_policy(policy: NetworkPolicy) -> dict[str, object]:
    """What a sandbox's detail says of it. The proxy's password stays here."""
    said: dict[str, object] = {}
    if policy.allow_out:
        said["allowOut"] = list(policy.allow_out)
    if policy.deny_out:
        said["denyOut"] = list(policy.deny_out)
    if policy.rules:
        said["rules"] = {rule.domain: [{"transform": {"headers": dict(rule.headers)}}] for rule in policy.rules}
    if policy.dns_servers:
        said["dnsServers"] = list(policy.dns_servers)
    if policy.egress_proxy is not None:
        proxy = policy.egress_proxy
        said["egressProxy"] = {"address": proxy.address} | ({"username": proxy.username} if proxy.username else {})
    return said


def _rule(domain: str, rules: Sequence[NetworkRule]) -> HeaderRule:
    if domain == "*":
        raise _bad('network.rules: a bare "*" is not a domain; name the hosts')
    if len(rules) != 1 or not rules[0].transform.headers:
        raise _bad(f"network.rules: {domain[:128]!r} must have one rule with a transform of headers")
    return HeaderRule(domain=domain.lower(), headers=rules[0].transform.headers)


def _proxy(asked: EgressProxyConfig) -> EgressProxy:
    if asked.tls is not None and not asked.tls.enabled and (asked.tls.serverName or asked.tls.caCert):
        raise _bad("network.egressProxy.tls has settings but is not enabled")
    host, _, port = asked.address.removeprefix("socks5://").rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise _bad("network.egressProxy.address must be HOST:PORT of a SOCKS5 proxy")
    if len((asked.username or "").encode()) > 255 or len((asked.password or "").encode()) > 255:
        raise _bad("network.egressProxy: a SOCKS5 user name and password have at most 255 bytes")
    tls = asked.tls if asked.tls is not None and asked.tls.enabled else None
    return EgressProxy(
        address=asked.address,
        username=asked.username or "",
        password=asked.password or "",
        tls=tls is not None,
        tls_server_name=(tls.serverName or "") if tls else "",
        tls_ca=(tls.caCert or "") if tls else "",
    )


def _bad(message: str) -> Refused:
    return Refused(400, message, should_retry=False)
