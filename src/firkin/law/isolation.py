"""What stands between a sandbox and the machine: the tier that is wished for, and the facts of one that runs.

A wish says nothing about what holds. So a report is made of what was read from
the live system, and what could not be read is absent with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Self

from firkin.law.errors import InvalidReason, InvalidSpec
from firkin.law.network import NetworkPolicy


class Isolation(StrEnum):
    """A tier, or the wish for the strongest one that this machine can do."""

    MICROVM = "microvm"
    GVISOR = "gvisor"
    NAMESPACES = "namespaces"
    OCI = "oci"
    STRONGEST = "strongest"

    @classmethod
    def parse(cls, text: str) -> Isolation:
        """The tier of that name; `InvalidSpec` for an unknown one."""
        try:
            return cls(text)
        except ValueError:
            known = ", ".join(tier.value for tier in cls)
            detail = f"no isolation is called {text[:64]!r}; there are {known}"
            raise InvalidSpec("choose the isolation", InvalidReason.INVALID_ISOLATION, detail) from None


STRENGTH: tuple[Isolation, ...] = (Isolation.MICROVM, Isolation.GVISOR, Isolation.NAMESPACES, Isolation.OCI)
"""The strongest first. A kernel of its own under a virtual machine; a kernel of its own in a process, with few
system calls of the host's in reach; the host's kernel. The last two are alike: the one that starts faster is taken."""


class SeccompMode(StrEnum):
    """As /proc/PID/status counts them: 0, 1, 2."""

    NONE = "none"
    STRICT = "strict"
    FILTER = "filter"


@dataclass(frozen=True, slots=True, kw_only=True)
class IdRange:
    """One line of a /proc/PID/uid_map: `count` ids from `inside` on are those from `outside` on."""

    inside: int
    outside: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CapabilitySets:
    """CapEff and CapBnd of /proc/PID/status, as bits."""

    effective: int
    bounding: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NamespaceNumbers:
    """The inode number of a namespace of the sandbox, and of the host's of that kind."""

    inside: int
    host: int

    @property
    def is_own(self) -> bool:
        return self.inside != self.host


@dataclass(frozen=True, slots=True, kw_only=True)
class IsolationReport:
    """What holds for a sandbox that lives, read from the system and never from the request.

    Each fact that is None stands in `unread` with the reason. Of which process
    `uid_map` and all up to `namespaces` are is the driver's to choose: the one that
    holds what runs inside (its first process; the virtual machine's; gVisor's
    sentry), named by `process`. `kernel_release` is of the kernel that answers the
    system calls made inside. `accelerator` is a virtual machine's or gVisor's:
    ``kvm``, ``tcg``, ``systrap``. `limits` are the control group's files by name,
    with their text. `network` is the policy that the kernel has confirmed to hold.
    """

    tier: str
    driver: str
    process: str = ""
    accelerator: str | None = None
    kernel_release: str | None = None
    uid_map: tuple[IdRange, ...] | None = None
    capabilities: CapabilitySets | None = None
    seccomp: SeccompMode | None = None
    no_new_privs: bool | None = None
    namespaces: Mapping[str, NamespaceNumbers] | None = None
    limits: Mapping[str, str] | None = None
    network: NetworkPolicy | None = None
    unread: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        absent = {name for name in self.facts() if getattr(self, name) is None}
        if absent != set(self.unread) or not all(self.unread.values()):
            wrong = ", ".join(sorted(absent ^ set(self.unread))) or "a reason is empty"
            raise ValueError(f"what is absent needs a reason, and nothing else may have one: {wrong}")

    @classmethod
    def facts(cls) -> tuple[str, ...]:
        """The names of all that can be absent."""
        given = ("tier", "driver", "process", "unread")
        return tuple(part.name for part in fields(cls) if part.name not in given)

    @classmethod
    def without_facts(cls, tier: str, driver: str, reason: str) -> Self:
        """Of what isolates nothing, or cannot be looked into."""
        return cls(tier=tier, driver=driver, unread=dict.fromkeys(cls.facts(), reason))
