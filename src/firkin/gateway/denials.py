"""What a gateway refused: where it was to go, and which rule of the policy forbade it.

A name is the guest's own word. It is passed on only where it looks as every host's
name does, and the server, which believes a gateway less than itself, looks again
and finds the rule itself. Paths, headers and values of secrets are never part of it.

How much is kept is bounded as it is for packets (`host.firewall`): the first few
flows, then a new one each second, and the rest as numbers for each reason.
"""

from __future__ import annotations

import ipaddress
import re
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any  # the JSON edge of the control socket

from firkin.gateway.judgement import Judge, Refusal
from firkin.gateway.names import most_specific
from firkin.gateway.orders import SandboxOrder
from firkin.law import reach
from firkin.law.network import HeaderRule
from firkin.law.secrets import named_secrets

MOST_FLOWS = 64
NOT_SHOWN = "not shown"
ANY, TCP, HTTP, DNS = "tcp or dns", "tcp", "http", "dns"
_AT_ONCE, _A_SECOND = 16, 1.0
_MOST_COUNTED = 1 << 53
_LONG_ENOUGH = 6  # shorter values of secrets are found in names by chance
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_HOST_NAME = re.compile(rf"(?=.{{1,253}}\Z)(?:{_LABEL}\.)*{_LABEL}")
_BY_ADDRESS = frozenset((Refusal.DENIED, Refusal.NOT_ALLOWED, Refusal.PRIVATE))
_BY_GROUND = frozenset(
    (
        Refusal.PRIVATE,
        Refusal.OTHER_ADDRESS,
        Refusal.OTHER_HOST,
        Refusal.PLAINTEXT_SECRET,
        Refusal.UNTRUSTED,
        Refusal.NOT_TRUSTED_INSIDE,
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Denial:
    """`name` is what was asked for, `address` where that was thought to be; empty where there is none to tell."""

    why: Refusal
    protocol: str = ANY
    port: int = 0
    name: str = ""
    address: str = ""


class DenialLog:
    """What was refused to one sandbox since it was last asked."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._counts: Counter[Denial] = Counter()
        self._known: OrderedDict[Denial, None] = OrderedDict()
        self._room, self._looked_at = float(_AT_ONCE), clock()

    def note(self, denial: Denial) -> None:
        if denial in self._known or self._has_room():
            self._known[denial] = None
            self._known.move_to_end(denial)
            if len(self._known) > MOST_FLOWS:
                self._known.popitem(last=False)
        else:
            denial = Denial(why=denial.why)
        self._counts[denial] += 1

    def taken(self) -> list[tuple[Denial, int]]:
        """Each with how often, and begin anew."""
        taken = list(self._counts.items())
        self._counts.clear()
        return taken

    def _has_room(self) -> bool:
        now = self._clock()
        self._room = min(float(_AT_ONCE), self._room + (now - self._looked_at) * _A_SECOND)
        self._looked_at = now
        if self._room < 1:
            return False
        self._room -= 1
        return True


def encode_denial(denial: Denial, count: int) -> list[Any]:
    return [denial.why.name, denial.protocol, denial.port, denial.name, denial.address, count]


def decode_denial(body: object) -> tuple[Denial, int]:
    """Raises `ValueError` for what `encode_denial` did not write."""
    match body:
        case [str(why), str(protocol), int(port), str(name), str(address), int(count)]:
            known = why in Refusal.__members__ and protocol in (ANY, TCP, HTTP, DNS)
            if known and 0 <= port < 65536 and 0 < count < _MOST_COUNTED:
                place = str(ipaddress.IPv4Address(address)) if address else ""
                return Denial(why=Refusal[why], protocol=protocol, port=port, name=name, address=place), count
    raise ValueError("a gateway reported what is no refusal")


def destination_of(denial: Denial, order: SandboxOrder) -> str:
    """The name, if it is one that may be shown; else the address, if there is one."""
    return denial.name if _may_be_shown(denial.name, order) else denial.address or NOT_SHOWN


def rule_of(denial: Denial, order: SandboxOrder) -> str:
    """The words of the policy that forbade it, as far as one did."""
    policy, why = order.policy, denial.why
    name = denial.name if _may_be_shown(denial.name, order) else ""
    allowance = _allowance(policy.allowed_domains, name)
    if why in _BY_ADDRESS and denial.address and not (allowance and why is Refusal.PRIVATE):
        return reach.denial(policy, denial.address) or why.value
    if not name:
        return why.value
    rule = Judge(policy).rule(name)
    if why is Refusal.SECRET_MISSING and rule is not None:
        return _missing_secrets(rule, order) or why.value
    said = "the name leads to a private address" if why is Refusal.PRIVATE else why.value
    ground = f"rule {rule.domain}" if rule is not None and why is not Refusal.PRIVATE else allowance
    return f"{said}: {ground}" if ground and why in _BY_GROUND else said


def _missing_secrets(rule: HeaderRule, order: SandboxOrder) -> str:
    missing = sorted(named_secrets(rule.headers.values()) - order.secrets.keys())
    return f"secret {', '.join(missing)} deleted: rule {rule.domain}" if missing else ""


def _allowance(patterns: tuple[str, ...], name: str) -> str:
    found = most_specific(patterns, name) if name else None
    return "" if found is None else f"allow_out {found}"


def _may_be_shown(name: str, order: SandboxOrder) -> bool:
    """A host's name, in which the guest has not written a secret that somebody sent back to it."""
    values = (value.lower() for value in order.secrets.values() if len(value) >= _LONG_ENOUGH)
    return _HOST_NAME.fullmatch(name) is not None and not any(value in name for value in values)
