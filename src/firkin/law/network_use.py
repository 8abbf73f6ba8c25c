"""What became of a sandbox's traffic: how much passed, what was refused, and which rule refused it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from firkin.law.network import NetworkPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedFlow:
    """Packets to one destination that were refused. `port` is 0 where the protocol has none; `at` is the last time.

    Where a gateway decided, `packets` counts connections and questions, and `destination` is the name that was asked
    for, if that is one that a host can have; else the address, or "not shown".
    """

    destination: str
    protocol: str
    port: int
    packets: int
    at: datetime
    rule: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkUse:
    """`address` is its own; `refused` the latest flows, the newest first.

    `trouble` is set when its policy could not be put in force: then it reaches nothing.
    """

    address: str
    packets_out: int = 0
    bytes_out: int = 0
    packets_in: int = 0
    bytes_in: int = 0
    packets_refused: int = 0
    refused: tuple[RefusedFlow, ...] = ()
    trouble: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxNetwork:
    """The policy of a sandbox, and what it did so far. `use` None: it has no network now, or none that is counted."""

    policy: NetworkPolicy
    use: NetworkUse | None = None
