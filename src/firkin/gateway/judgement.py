"""What one policy says of one address or name. No I/O: a verdict is a value.

The order is the law's (`firkin.law.network`): private addresses never, unless
`allow_out` has them by address; then what `allow_out` names; then not what
`deny_out` names; then everything if `internet`, else nothing.
"""

from __future__ import annotations

import ipaddress
from enum import StrEnum

from firkin.gateway.names import matches, most_specific
from firkin.law.network import EVERYWHERE, HeaderRule, NetworkPolicy
from firkin.law.reach import PRIVATE, Reach

_PRIVATE = tuple(ipaddress.IPv4Network(text) for text in PRIVATE)


class Refusal(StrEnum):
    """Why nothing goes there. The words are for people, and have nothing of the guest's in them."""

    UNKNOWN = "its sandbox is not known"
    PRIVATE = "private, link-local and host addresses are out of reach unless allow_out has them by address"
    DENIED = "deny_out has that address"
    NOT_ALLOWED = "allow_out has neither that address nor a name that was asked for"
    NO_TLS_NAME = "no name in the TLS hello, and allow_out does not have that address"
    NO_HOST_NAME = "no name in the Host of the first request, and allow_out does not have that address"
    NAME_NOT_ALLOWED = "allow_out does not have that name"
    OTHER_ADDRESS = "the name is allowed, but that is no address of it"
    UNRESOLVED = "no address of that name was found"
    MALFORMED = "the request was malformed or ambiguous"
    OTHER_HOST = "the request asks for another host than its connection"
    SECRET_MISSING = "a secret that the rule names does not exist"
    PLAINTEXT_SECRET = "the rule holds a secret, which goes out by https only"
    UNREACHABLE = "the server could not be reached"
    UNTRUSTED = "the server's certificate is not trusted"
    NOT_TRUSTED_INSIDE = "a program inside does not trust the sandbox's authority, /etc/ssl/certs/firkin-egress.pem"
    PROXY_FAILED = "the egress proxy could not be used"
    PROXY_PRIVATE = "the egress proxy has a private address, and those are out of reach"
    PROXY_UNTRUSTED = "the egress proxy's certificate is not trusted"
    PROXY_LOCKED = "the egress proxy did not take the user and password"
    PROXY_DECLINED = "the egress proxy did not connect to the server"
    TOO_MANY = "too many connections at once"
    TOO_MUCH = "an HTTP/2 connection sent more at once than it may"
    CLEARTEXT_HTTP2 = "HTTP/2 without TLS is led by address only: use https or HTTP/1.1"
    FAILED = "the gateway failed"


class Refused(Exception):
    """Nothing goes there."""

    def __init__(self, why: Refusal) -> None:
        super().__init__(why.value)
        self.why = why


class Judge:
    """One policy, made ready to be asked often."""

    def __init__(self, policy: NetworkPolicy) -> None:
        self._allowed = Reach.of(NetworkPolicy(allow_out=policy.allowed_networks))
        self._denied = tuple(ipaddress.ip_network(text) for text in policy.denied_networks)
        self._names = policy.allowed_domains
        self._rules = {rule.domain.lower(): rule for rule in policy.rules}
        self._internet = policy.internet
        self.knows_all_names = policy.internet and EVERYWHERE not in policy.deny_out
        self.looks_at_names = bool(self._names or self._rules)

    def allows_by_address(self, address: str) -> bool:
        """Whether `allow_out` has it by address."""
        return self._allowed.holds(address)

    def require_address(self, address: str) -> None:
        """Raises `Refused` when that address is not to be reached by itself, without a name."""
        if self.allows_by_address(address):
            return
        self.require_public(address)
        if _within(address, self._denied):
            raise Refused(Refusal.DENIED)
        if not self._internet:
            raise Refused(Refusal.NOT_ALLOWED)

    def require_public(self, address: str) -> None:
        """Raises `Refused` for an address that no name may lead to."""
        if not self.allows_by_address(address) and _within(address, _PRIVATE):
            raise Refused(Refusal.PRIVATE)

    def names(self, name: str) -> bool:
        """Whether `allow_out` has it by name."""
        return any(matches(pattern, name) for pattern in self._names)

    def answers_for(self, name: str) -> bool:
        """Whether its addresses may be asked for."""
        return self.knows_all_names or self.names(name)

    def rule(self, name: str) -> HeaderRule | None:
        """The one that decides: the exact one, else the longest; they are not merged."""
        found = most_specific(self._rules, name)
        return None if found is None else self._rules[found]


def _within(address: str, networks: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]) -> bool:
    value = ipaddress.ip_address(address)
    return any(value in network for network in networks)
