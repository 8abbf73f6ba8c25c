"""Network policies as the wire has them: E2B's fields, and two of Firkin's own.

`allowPorts` says which ports can be reached through this server, `peers` which
sandboxes it may reach and be reached by. E2B's clients do not know these two, so
an update that leaves them out leaves them as they are; all other fields it clears.
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence

from firkin.e2b.auth import ApiKey
from firkin.e2b.directory import LABEL_MASK_HOST, SandboxDirectory, is_public
from firkin.e2b.exchange import Exchange, Refused
from firkin.e2b.models import EgressConfig, EgressProxyConfig, NetworkRule, NetworkUpdate, parse
from firkin.e2b.numbers import read_whole
from firkin.e2b.settings import ServerSettings
from firkin.e2b.tenant_limits import TenantLimits
from firkin.law.errors import InvalidReason, InvalidSpec, WrongState
from firkin.law.ids import SandboxId
from firkin.law.network import EVERYWHERE, EgressProxy, HeaderRule, NetworkPolicy, check_domain, network_of
from firkin.law.sandboxes import SandboxInfo

_NAMES_NEED_DENY_ALL = (
    "When specifying allowed domains in allow out, you must include 'ALL_TRAFFIC' in deny out"
    " to block all other traffic."
)


class NetworkCalls:
    """``PUT /sandboxes/{id}/network``."""

    def __init__(self, directory: SandboxDirectory, settings: ServerSettings) -> None:
        self._directory = directory
        self._settings = settings

    async def update(self, exchange: Exchange, tenant: ApiKey, *path: str) -> None:
        request = parse(await exchange.body(self._settings.max_json_bytes) or b"{}", NetworkUpdate)
        info = await self._directory.owned(tenant, path[0])
        internet = request.allow_internet_access is not False
        policy = policy_of(request, internet=internet, before=info.network, tenants=self._settings.tenants)
        try:
            await self._directory.backend.sandboxes.update_network(info.id, policy)
        except WrongState as error:
            raise Refused(409, f'Sandbox "{info.id}" is not running', should_retry=False) from error
        if policy.ports is not None:
            self._directory.shut(info.id, policy.ports)
        await exchange.answer(204)


def policy_of(
    config: EgressConfig, *, internet: bool, tenants: TenantLimits | None, before: NetworkPolicy | None = None
) -> NetworkPolicy:
    """What `config` asks for; what it leaves out of Firkin's own fields is as `before`. Raises `Refused` (400)."""
    policy = _asked(config, internet=internet, before=before)
    if tenants is not None:
        tenants.require_policy(policy)
    return policy


def _asked(config: EgressConfig, *, internet: bool, before: NetworkPolicy | None) -> NetworkPolicy:
    if asked := config.unsupported():
        raise _bad(f"network.{asked[0]} is not supported by this server yet; leave it out")
    kept = before or NetworkPolicy()
    deny_out = tuple(config.denyOut or ())
    for text in deny_out:
        if network_of(text) is None:
            raise _bad(f"invalid denied CIDR {text[:64]}")
    names = [text for text in config.allowOut or () if network_of(text) is None]
    rules = tuple(_rule(domain, rules) for domain, rules in (config.rules or {}).items())
    domains = [rule.domain for rule in rules]
    if twice := [domain for domain in domains if domains.count(domain) > 1]:
        raise _bad(f"network.rules names {twice[0][:128]!r} twice; a domain is the same in capitals, and has one rule")
    proxy = None if config.egressProxy is None else _proxy(config.egressProxy)
    try:
        for text in names:
            check_domain(text)
        if names and internet and EVERYWHERE not in deny_out:
            raise _bad(_NAMES_NEED_DENY_ALL)
        return NetworkPolicy(
            internet=internet,
            allow_out=tuple(config.allowOut or ()),
            deny_out=deny_out,
            rules=rules,
            egress_proxy=proxy,
            dns_servers=tuple(config.dnsServers or ()),
            peers=kept.peers if config.peers is None else tuple(SandboxId(text) for text in config.peers),
            ports=kept.ports if config.allowPorts is None else tuple(config.allowPorts),
        )
    except InvalidSpec as error:
        if error.reason is InvalidReason.INVALID_ID:
            raise _bad(f"network.peers: {error}") from error
        raise _bad(str(error)) from error


def shown(info: SandboxInfo) -> dict[str, object]:
    """What is in force, in the words of the wire. Without internet everything is denied that is not allowed."""
    policy = info.network
    deny_out = [*policy.deny_out]
    if not policy.internet and EVERYWHERE not in deny_out:
        deny_out.append(EVERYWHERE)
    fields = {
        "allowOut": [*policy.allow_out],
        "denyOut": deny_out,
        "rules": {rule.domain: [{"transform": {"headers": dict(rule.headers)}}] for rule in policy.rules},
        "egressProxy": _shown_proxy(policy.egress_proxy),
        "dnsServers": [*policy.dns_servers],
        "peers": [*policy.peers],
        "maskRequestHost": info.labels.get(LABEL_MASK_HOST),
    }
    more: dict[str, object] = {name: value for name, value in fields.items() if value}
    if policy.ports is not None:
        more["allowPorts"] = [*policy.ports]
    return {"allowPublicTraffic": is_public(info), **more}


def _shown_proxy(proxy: EgressProxy | None) -> dict[str, object]:
    """Its password and its authority stay here."""
    if proxy is None:
        return {}
    shown: dict[str, object] = {"address": proxy.address}
    if proxy.username:
        shown["username"] = proxy.username
    if proxy.tls:
        shown["tls"] = {"enabled": True, **({"serverName": proxy.tls_server_name} if proxy.tls_server_name else {})}
    return shown


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
    if not host or not 0 < (read_whole(port) or 0) < 65536:
        raise _bad("network.egressProxy.address must be HOST:PORT of a SOCKS5 proxy")
    if len((asked.username or "").encode()) > 255 or len((asked.password or "").encode()) > 255:
        raise _bad("network.egressProxy: a SOCKS5 user name and password have at most 255 bytes")
    if asked.password and not asked.username:
        raise _bad("network.egressProxy.password is only valid together with username")
    tls = asked.tls if asked.tls is not None and asked.tls.enabled else None
    if tls is not None and tls.caCert and not _is_pem(tls.caCert):
        raise _bad("network.egressProxy.tls.caCert must be certificates in PEM")
    return EgressProxy(
        address=asked.address,
        username=asked.username or "",
        password=asked.password or "",
        tls=tls is not None,
        tls_server_name=(tls.serverName or "") if tls else "",
        tls_ca=(tls.caCert or "") if tls else "",
    )


def _is_pem(text: str) -> bool:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=text)
    except (ssl.SSLError, ValueError, TypeError):  # TypeError: letters that are not ASCII
        return False
    return True


def _bad(message: str) -> Refused:
    return Refused(400, message, should_retry=False)
