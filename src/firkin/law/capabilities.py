"""What a backend or driver can do, and if not, why not.

A capability is a promise that is exercised by the contract suites. A method may
exist and still refuse; refusing is always `UnsupportedCapability`, never
silence.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from firkin.law.errors import InvalidReason, InvalidSpec, UnsupportedCapability


class CapabilityName(StrEnum):
    """The 42 names, in canonical order."""

    RUNTIME_CREATE = "runtime.create"
    RUNTIME_ATTACH = "runtime.attach"
    RUNTIME_LIST = "runtime.list"
    RUNTIME_DEADLINE = "runtime.deadline"
    SANDBOX_STOP = "sandbox.stop"
    SANDBOX_KILL = "sandbox.kill"
    SANDBOX_DELETE = "sandbox.delete"
    SNAPSHOT_CAPTURE = "snapshot.capture"
    SNAPSHOT_RESTORE = "snapshot.restore"
    SNAPSHOT_DELETE = "snapshot.delete"
    SNAPSHOT_EXPORT = "snapshot.export"
    SNAPSHOT_IMPORT = "snapshot.import"
    PAUSE_CAPTURE = "pause.capture"
    PAUSE_RESUME = "pause.resume"
    PROCESS_RUN = "process.run"
    PROCESS_START = "process.start"
    PROCESS_STREAM = "process.stream"
    PROCESS_STDIN = "process.stdin"
    PROCESS_SIGNAL = "process.signal"
    PROCESS_PTY = "process.pty"
    FILESYSTEM_READ = "filesystem.read"
    FILESYSTEM_WRITE = "filesystem.write"
    FILESYSTEM_COPY_IN = "filesystem.copy_in"
    FILESYSTEM_COPY_OUT = "filesystem.copy_out"
    FILESYSTEM_LIST = "filesystem.list"
    FILESYSTEM_WATCH = "filesystem.watch"
    PORTS_CONNECT = "ports.connect"
    PORTS_EXPOSE = "ports.expose"
    PORTS_DOMAIN_PROXY = "ports.domain_proxy"
    TEMPLATE_PREPARE = "template.prepare"
    TEMPLATE_READY = "template.ready"
    TEMPLATE_FRESHNESS = "template.freshness"
    TEMPLATE_DATA_PLANE_NONE = "template.data_plane.none"
    TEMPLATE_DATA_PLANE_ENVD_INJECT = "template.data_plane.envd.inject"
    TEMPLATE_DATA_PLANE_ENVD_VERIFY = "template.data_plane.envd.verify"
    SANDBOX_DATA_PLANE_INIT = "sandbox.data_plane.init"
    WARM_POOL_PREWARM = "warm_pool.prewarm"
    WARM_POOL_CHECKOUT = "warm_pool.checkout"
    EVENTS_SUBSCRIBE = "events.subscribe"
    METRICS_HOST = "metrics.host"
    METRICS_GUEST = "metrics.guest"
    NETWORK_POLICY = "network.policy"

    @classmethod
    def parse(cls, text: str) -> CapabilityName:
        """The capability of that dotted name; `InvalidSpec` for an unknown one."""
        try:
            return cls(text)
        except ValueError:
            raise InvalidSpec(
                "name a capability", InvalidReason.INVALID_ID, f"no capability is called {text!r}"
            ) from None


# What a guest agent gives, whatever isolates it: a driver offers these as soon as its agent can be reached.
AGENT_CAPABILITIES = (
    CapabilityName.PROCESS_RUN,
    CapabilityName.PROCESS_START,
    CapabilityName.PROCESS_STREAM,
    CapabilityName.PROCESS_STDIN,
    CapabilityName.PROCESS_SIGNAL,
    CapabilityName.PROCESS_PTY,
    CapabilityName.FILESYSTEM_READ,
    CapabilityName.FILESYSTEM_WRITE,
    CapabilityName.FILESYSTEM_COPY_IN,
    CapabilityName.FILESYSTEM_COPY_OUT,
    CapabilityName.FILESYSTEM_LIST,
    CapabilityName.FILESYSTEM_WATCH,
    CapabilityName.PORTS_CONNECT,
    CapabilityName.METRICS_GUEST,
)


@dataclass(frozen=True, slots=True)
class Permanent:
    """This build or driver will never offer it."""

    detail: str

    def __str__(self) -> str:
        return self.detail


@dataclass(frozen=True, slots=True)
class BuildFeatureGated:
    feature: str

    def __str__(self) -> str:
        return f"needs the feature {self.feature}"


@dataclass(frozen=True, slots=True)
class HostPreflightGated:
    """The host lacks something that an operator could supply."""

    prerequisite: str

    def __str__(self) -> str:
        return f"this host lacks {self.prerequisite}"


@dataclass(frozen=True, slots=True)
class RuntimeStateGated:
    state: str

    def __str__(self) -> str:
        return f"not while {self.state}"


@dataclass(frozen=True, slots=True)
class TierGated:
    """A tier of isolation that this machine cannot do as it is; `reasons` say what to do, a sentence each."""

    tier: str
    reasons: tuple[str, ...] = ()

    def __str__(self) -> str:
        why = "; ".join(self.reasons) or "it is not ready"
        return f"this machine cannot isolate by {self.tier}: {why}"


CapabilityReason = Permanent | BuildFeatureGated | HostPreflightGated | RuntimeStateGated | TierGated


@dataclass(frozen=True, slots=True)
class Supported:
    """It is offered."""


@dataclass(frozen=True, slots=True)
class Unsupported:
    """It is refused, for that reason."""

    reason: CapabilityReason


CapabilityStatus = Supported | Unsupported

NOT_REPORTED = Permanent("not reported")


@dataclass(frozen=True, slots=True)
class Capabilities:
    """The answer for all 42 names. An absent name reads as refused, "not reported"."""

    _reasons: Mapping[CapabilityName, CapabilityReason | None]

    @classmethod
    def all_unsupported(cls, reason: CapabilityReason) -> Capabilities:
        return cls(MappingProxyType(dict.fromkeys(CapabilityName, reason)))

    def with_supported(self, *names: CapabilityName) -> Capabilities:
        return self._merged(dict.fromkeys(names))

    def with_unsupported(self, reason: CapabilityReason, *names: CapabilityName) -> Capabilities:
        return self._merged(dict.fromkeys(names, reason))

    def _merged(self, more: Mapping[CapabilityName, CapabilityReason | None]) -> Capabilities:
        return Capabilities(MappingProxyType({**self._reasons, **more}))

    def refusal(self, name: CapabilityName) -> CapabilityReason | None:
        """Why `name` is refused, or None when it is supported."""
        return self._reasons.get(name, NOT_REPORTED)

    def status(self, name: CapabilityName) -> CapabilityStatus:
        """The same answer as a value to match on."""
        reason = self.refusal(name)
        return Supported() if reason is None else Unsupported(reason)

    def supports(self, name: CapabilityName) -> bool:
        return self.refusal(name) is None

    def require(self, operation: str, *names: CapabilityName) -> None:
        """Raise `UnsupportedCapability` for the first of `names` that is refused."""
        for name in names:
            reason = self.refusal(name)
            if reason is not None:
                raise UnsupportedCapability(operation, name, reason)

    def __iter__(self) -> Iterator[tuple[CapabilityName, CapabilityReason | None]]:
        return ((name, self.refusal(name)) for name in CapabilityName)

    def supported(self) -> Iterable[CapabilityName]:
        return [name for name, reason in self if reason is None]
