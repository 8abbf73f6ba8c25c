"""Templates: where a sandbox's first files come from.

A source names an image, a folder, a recipe or the host itself. Preparing it
yields an unshifted root file system that many sandboxes share read-only. The
source is never changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Self

from firkin.law.errors import InvalidReason, InvalidSpec
from firkin.law.ids import TemplateId
from firkin.law.processes import CommandMode

ENVD_PORT = 49983


@dataclass(frozen=True, slots=True)
class OciSource:
    """An image: a registry reference (``debian:12``), or with a transport prefix
    ``oci:FOLDER[:TAG]``, ``oci-archive:FILE``, ``docker-archive:FILE``."""

    reference: str


@dataclass(frozen=True, slots=True)
class GitSource:
    url: str
    ref: str = "HEAD"


@dataclass(frozen=True, slots=True)
class LocalSource:
    """A folder or a tarball on the host that holds a root file system."""

    path: str


@dataclass(frozen=True, slots=True)
class HostSource:
    """The machine's own /usr, read-only, under a clean /etc and home. Needs no download."""


@dataclass(frozen=True, slots=True)
class RecipeSource:
    """A system built here with the distribution's own tools, e.g. ``debian``."""

    name: str


TemplateSource = OciSource | GitSource | LocalSource | HostSource | RecipeSource


def describe_source(source: TemplateSource) -> str:
    """The source as one printable word: ``oci:debian:12``, ``local:/srv/root``, ``host``."""
    match source:
        case OciSource(reference):
            return f"oci:{reference}"
        case GitSource(url, ref):
            return f"git:{url}@{ref}"
        case LocalSource(path):
            return f"local:{path}"
        case RecipeSource(name):
            return f"recipe:{name}"
        case HostSource():
            return "host"


def parse_source(text: str) -> TemplateSource:
    """The inverse of `describe_source`. A bare word is an image reference.

    ``host``, ``recipe:NAME``, ``git:URL@REF``, ``local:PATH``, a path that starts
    with ``/`` or ``.``, else an image.
    """
    kind, _, rest = text.partition(":")
    if text == "host":
        return HostSource()
    if kind == "recipe" and rest:
        return RecipeSource(rest)
    if kind == "git" and rest:
        url, _, ref = rest.rpartition("@")
        return GitSource(url, ref) if url else GitSource(rest)
    if kind == "local" and rest:
        return LocalSource(rest)
    if text.startswith(("/", ".")):
        return LocalSource(text)
    if not text.strip():
        raise InvalidSpec("parse template source", InvalidReason.MISSING_TEMPLATE, "the template source is empty")
    return OciSource(rest if kind == "oci" and rest and not rest.startswith(("/", ".")) else text)


class Provisioning(StrEnum):
    INJECT = "inject"
    ALREADY_PRESENT = "already_present"


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvdPlane:
    """The E2B data plane. `INJECT`: the server supplies it over Firkin's own agent."""

    provisioning: Provisioning = Provisioning.INJECT
    port: int = ENVD_PORT
    health_path: str = "/health"

    def __post_init__(self) -> None:
        if not 0 < self.port < 65536:
            raise InvalidSpec("check data plane", InvalidReason.INVALID_PORT, f"port {self.port} is not 1…65535")
        if not self.health_path.startswith("/"):
            raise InvalidSpec(
                "check data plane", InvalidReason.INVALID_DATA_PLANE, "the health path must start with '/'"
            )


@dataclass(frozen=True, slots=True)
class NoPlane:
    """No E2B data plane: processes and files are reached through the library only."""


DataPlane = EnvdPlane | NoPlane


@dataclass(frozen=True, slots=True)
class EnvdHealth:
    """Ready when the data plane answers."""


ReadyProbe = CommandMode | EnvdHealth


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateSpec:
    """What to prepare. `id` defaults to one made from the source. `timeout_s` bounds the whole preparation."""

    source: TemplateSource
    id: TemplateId | None = None
    data_plane: DataPlane = field(default_factory=EnvdPlane)
    env: Mapping[str, str] = field(default_factory=dict)
    setup: tuple[CommandMode, ...] = ()
    start: CommandMode | None = None
    ready: ReadyProbe | None = None
    timeout_s: float = 600.0

    @classmethod
    def oci(cls, reference: str, *, id: TemplateId | None = None, data_plane: DataPlane | None = None) -> Self:
        return cls(source=OciSource(reference), id=id, data_plane=data_plane or EnvdPlane())

    @classmethod
    def git(cls, url: str, *, id: TemplateId | None = None) -> Self:
        return cls(source=GitSource(url), id=id)

    @classmethod
    def local(cls, path: str, *, id: TemplateId | None = None) -> Self:
        return cls(source=LocalSource(path), id=id)

    @classmethod
    def host(cls, *, id: TemplateId | None = None) -> Self:
        return cls(source=HostSource(), id=id)


class TemplateState(StrEnum):
    PREPARING = "preparing"
    READY = "ready"
    FAILED = "failed"
    DELETED = "deleted"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageConfig:
    """What the image says a process in it should get."""

    env: Mapping[str, str] = field(default_factory=dict)
    user: str = "user"
    workdir: str = "/home/user"


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateInfo:
    """`failure` says why, when `state` is FAILED. `size_bytes` is the unpacked size, 0 when unknown."""

    id: TemplateId
    state: TemplateState
    source: TemplateSource
    data_plane: DataPlane
    created_at: datetime
    prepared_at: datetime | None = None
    config: ImageConfig = field(default_factory=ImageConfig)
    size_bytes: int = 0
    digest: str = ""
    failure: str = ""


PreparedTemplate = TemplateInfo
