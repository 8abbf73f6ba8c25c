"""The control plane's JSON: what clients send and what they get back.

Requests refuse unknown fields by name; a field is honoured or refused, never
ignored. Field names are the wire's own.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from firkin.e2b.exchange import Exchange, Refused
from firkin.e2b.numbers import read_whole

# An amount of which bytes can be made; how much of it is allowed, the law says.
Megabytes = Annotated[int, msgspec.Meta(ge=-(1 << 40), le=1 << 40)]
T = TypeVar("T")
_REPEATABLE = frozenset({"types"})  # the kinds of events; several names may also stand between commas


class AutoResume(msgspec.Struct, forbid_unknown_fields=True):
    enabled: bool = False


_NOT_YET = ("httpsPorts",)


class NetworkTransform(msgspec.Struct, forbid_unknown_fields=True):
    headers: dict[str, str] = {}


class NetworkRule(msgspec.Struct, forbid_unknown_fields=True):
    transform: NetworkTransform


class EgressProxyTls(msgspec.Struct, forbid_unknown_fields=True):
    enabled: bool
    serverName: str | None = None
    caCert: str | None = None


class EgressProxyConfig(msgspec.Struct, forbid_unknown_fields=True):
    address: str
    username: str | None = None
    password: str | None = None
    tls: EgressProxyTls | None = None


class EgressConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What a policy says at any time. `peers` and `allowPorts` are Firkin's own."""

    allowOut: list[str] | None = None
    denyOut: list[str] | None = None
    dnsServers: list[str] | None = None
    egressProxy: EgressProxyConfig | None = None
    httpsPorts: list[int] | None = None
    rules: dict[str, list[NetworkRule]] | None = None
    peers: list[str] | None = None
    allowPorts: list[int] | None = None

    def unsupported(self) -> list[str]:
        """The fields that ask for something; an empty list or null asks for nothing."""
        return [name for name in _NOT_YET if getattr(self, name)]


class NetworkConfig(EgressConfig, kw_only=True, forbid_unknown_fields=True):
    """At creation."""

    allowPublicTraffic: bool | None = None
    maskRequestHost: str | None = None


class NetworkUpdate(EgressConfig, kw_only=True, forbid_unknown_fields=True):
    """``PUT /sandboxes/{id}/network``."""

    allow_internet_access: bool | None = None


class SandboxVolume(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A volume of a sandbox. `readOnly` is Firkin's own."""

    name: str
    path: str
    readOnly: bool = False


class NewSandbox(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """``POST /v2/sandboxes``. `isolation` is Firkin's own."""

    templateID: str
    timeout: int | None = None
    autoPause: bool | None = None
    autoPauseMemory: bool | None = None
    autoResume: AutoResume | None = None
    allow_internet_access: bool | None = None
    network: NetworkConfig | None = None
    metadata: dict[str, str] | None = None
    envVars: dict[str, str] | None = None
    mcp: dict[str, Any] | None = None
    iam: dict[str, Any] | None = None
    volumeMounts: list[SandboxVolume] | None = None
    isolation: str | None = None


class NewSandboxV1(NewSandbox, kw_only=True, forbid_unknown_fields=True):
    """``POST /sandboxes``: `secure` false asks for a data plane without a token."""

    secure: bool | None = None


class ConnectSandbox(msgspec.Struct, forbid_unknown_fields=True):
    timeout: int | None = None
    memory: bool = True


class ResumeSandbox(msgspec.Struct, forbid_unknown_fields=True):
    timeout: int | None = None
    autoPause: bool | None = None
    memory: bool = True


class PauseSandbox(msgspec.Struct, forbid_unknown_fields=True):
    memory: bool = True
    requireHealthyGuest: bool = False


class SandboxTimeout(msgspec.Struct, forbid_unknown_fields=True):
    timeout: int


class SandboxRefresh(msgspec.Struct, forbid_unknown_fields=True):
    duration: int | None = None


class Sandbox(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The answer to create and connect."""

    templateID: str
    sandboxID: str
    clientID: str
    envdVersion: str
    envdAccessToken: str | UnsetType = UNSET
    trafficAccessToken: str | UnsetType | None = UNSET
    domain: str | UnsetType | None = UNSET
    alias: str | UnsetType = UNSET


class ListedSandbox(msgspec.Struct, kw_only=True):
    templateID: str
    sandboxID: str
    clientID: str
    startedAt: str
    endAt: str
    envdVersion: str
    cpuCount: int
    memoryMB: int
    diskSizeMB: int
    state: str
    alias: str
    metadata: dict[str, str]
    volumeMounts: list[SandboxVolume]
    envdUnresponsiveAtPause: bool | UnsetType = UNSET


class SandboxDetail(ListedSandbox, kw_only=True):
    allowInternetAccess: bool | None
    domain: str | None
    network: dict[str, Any]
    lifecycle: dict[str, Any]
    envdAccessToken: str | UnsetType = UNSET
    pauseMode: str | UnsetType = UNSET


class SandboxMetric(msgspec.Struct, kw_only=True):
    timestamp: str
    timestampUnix: int
    cpuCount: int
    cpuUsedPct: float
    memUsed: int
    memTotal: int
    memCache: int
    diskUsed: int
    diskTotal: int


class Template(msgspec.Struct, kw_only=True):
    templateID: str
    buildID: str
    cpuCount: int
    memoryMB: int
    diskSizeMB: int
    public: bool
    aliases: list[str]
    names: list[str]
    createdAt: str
    updatedAt: str
    createdBy: None
    lastSpawnedAt: str | None
    spawnCount: int
    buildCount: int
    envdVersion: str
    buildStatus: str


def parse(body: bytes, kind: type[T]) -> T:
    """The request body as `kind`; `Refused` (400) says what is wrong with it."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise Refused(400, f"the request body does not fit: {error}", should_retry=False) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Refused(400, f"the request body is not valid JSON: {error}", should_retry=False) from None
    except RecursionError:
        raise Refused(400, "the request body is nested too deep", should_retry=False) from None


def allow_query(exchange: Exchange, *names: str) -> None:
    """Refuse a query field that this call does not have, and one that comes twice: of two, one would be ignored."""
    seen: set[str] = set()
    for name, _ in exchange.query_pairs:
        if name not in names:
            allowed = ", ".join(names) or "none"
            raise Refused(400, f"unknown query field {name[:64]!r}; allowed here: {allowed}", should_retry=False)
        if name in seen and name not in _REPEATABLE:
            raise Refused(400, f"the query field {name!r} comes twice; give it once", should_retry=False)
        seen.add(name)


def query_word(exchange: Exchange, name: str, words: Collection[str], *, default: str) -> str:
    """The field, if it is one of `words`. Raises `Refused` (400)."""
    text = exchange.query.get(name, default)
    if text not in words:
        raise Refused(400, f"{name} must be one of {', '.join(words)}, not {text[:32]!r}", should_retry=False)
    return text


def query_int(exchange: Exchange, name: str, *, default: int | None, least: int, most: int) -> int | None:
    text = exchange.query.get(name)
    if text is None:
        return default
    number = read_whole(text)
    if number is None or not least <= number <= most:
        raise Refused(400, f"{name} must be a whole number from {least} to {most}", should_retry=False)
    return number
