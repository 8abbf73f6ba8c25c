"""Templates: where a sandbox's first files come from.

A source names an image, a folder, a recipe or the host itself. Preparing it
yields an unshifted root file system that many sandboxes share read-only. The
source is never changed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Self

from firkin.law.build_steps import BuildStep, Forced, Startup
from firkin.law.errors import InvalidReason, InvalidSpec
from firkin.law.ids import TemplateId
from firkin.law.isolation import Isolation
from firkin.law.processes import Argv, CommandMode, Shell
from firkin.law.resources import SandboxResources

ENVD_PORT = 49983
_TRANSPORTS = ("oci", "oci-archive", "docker-archive")
_REGISTRY = "docker://"
_HOST_ONLY = re.compile(r"[a-z]+://[^/]*")  # what stands before the ``@`` in ``https://user@host/path``


@dataclass(frozen=True, slots=True)
class OciSource:
    """An image: a registry reference (``debian:12``), or with a transport prefix
    ``oci:FOLDER[:TAG]``, ``oci-archive:FILE[:TAG]``, ``docker-archive:FILE[:TAG]``."""

    reference: str

    @property
    def path(self) -> str | None:
        """What follows the transport prefix, with its tag; None for an image of a registry."""
        transport, _, rest = self.reference.partition(":")
        return rest if transport in _TRANSPORTS else None


@dataclass(frozen=True, slots=True)
class GitSource:
    """A repository at a branch, a tag or a commit, cloned into the home of the template ``base``."""

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


@dataclass(frozen=True, slots=True)
class TemplateBase:
    """Another template that is ready: its files, environment, user, working directory and start command."""

    template_id: TemplateId


TemplateSource = OciSource | GitSource | LocalSource | HostSource | RecipeSource | TemplateBase


def describe_source(source: TemplateSource) -> str:
    """The source as one printable word that `parse_source` reads back: ``debian:12``, ``local:/srv/root``, ``host``.

    An image whose bare name would read as something else is written ``docker://NAME``.
    """
    match source:
        case OciSource(reference):
            return reference if _read_source(reference) == source else f"{_REGISTRY}{reference}"
        case GitSource(url, ref):
            return f"git:{url}@{ref}"
        case LocalSource(path):
            return f"local:{path}"
        case RecipeSource(name):
            return f"recipe:{name}"
        case TemplateBase(template_id):
            return f"template:{template_id}"
        case HostSource():
            return "host"


def parse_source(text: str) -> TemplateSource:
    """The inverse of `describe_source`. A bare word is an image of a registry.

    ``host``, ``recipe:NAME``, ``git:URL@REF``, ``template:ID``, ``local:PATH``, a path
    that starts with ``/`` or ``.``; the image in a layout folder (``oci:FOLDER[:TAG]``) or an
    archive (``oci-archive:FILE``, ``docker-archive:FILE``); else an image of a
    registry, with or without ``docker://``. `InvalidSpec` for nothing at all.
    """
    if not text.strip() or text in (_REGISTRY, *(f"{transport}:" for transport in _TRANSPORTS)):
        raise InvalidSpec(
            "parse template source", InvalidReason.MISSING_TEMPLATE, f"the template source {text!r} names nothing"
        )
    return _read_source(text)


def _read_source(text: str) -> TemplateSource:
    kind, _, rest = text.partition(":")
    if text == "host":
        return HostSource()
    if kind == "recipe" and rest:
        return RecipeSource(rest)
    if kind == "git" and rest:
        url, _, ref = rest.rpartition("@")
        return GitSource(rest) if ":" in ref or not url or _HOST_ONLY.fullmatch(url) else GitSource(url, ref)
    if kind == "template" and rest:
        return TemplateBase(TemplateId(rest))
    if kind == "local" and rest:
        return LocalSource(rest)
    if text.startswith(("/", ".")):
        return LocalSource(text)
    return OciSource(text.removeprefix(_REGISTRY))


class Provisioning(StrEnum):
    INJECT = "inject"
    ALREADY_PRESENT = "already_present"


class GuestArch(StrEnum):
    """The machine that a sandbox's programs are made for."""

    AARCH64 = "aarch64"
    X86_64 = "x86_64"


class EnvdOrigin(StrEnum):
    """What `EnvdSource.reference` names: an image layer, a URL, or a commit that was built."""

    PINNED_LAYER = "pinned_layer"
    PINNED_ARTIFACT = "pinned_artifact"
    VENDORED_BUILD = "vendored_build"


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvdSource:
    """Where a data plane's program comes from, and the digest (64 hex digits) that it must have."""

    origin: EnvdOrigin
    reference: str
    sha256: str

    def __post_init__(self) -> None:
        if len(self.sha256) != 64 or not set(self.sha256) <= set("0123456789abcdef"):
            detail = f"{self.sha256[:80]!r} is no SHA-256 digest; it has 64 lower-case hexadecimal digits"
            raise InvalidSpec("check data plane", InvalidReason.INVALID_DATA_PLANE, detail)


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvdPlane:
    """The E2B data plane. `INJECT`: the server supplies it over Firkin's own agent.

    `version`, `source` and `arch` say what an image that has its own must hold;
    None means whatever there is.
    """

    provisioning: Provisioning = Provisioning.INJECT
    port: int = ENVD_PORT
    health_path: str = "/health"
    version: str | None = None
    source: EnvdSource | None = None
    arch: GuestArch | None = None

    def __post_init__(self) -> None:
        if type(self.port) is not int or not 0 < self.port < 65536:
            raise InvalidSpec("check data plane", InvalidReason.INVALID_PORT, f"port {self.port!r} is not 1…65535")
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
class RegistryLogin:
    """Whom to be at the registry that an image comes from. Kept nowhere."""

    username: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateSpec:
    """What to prepare. `id` defaults to one made from the source. `timeout_s` bounds the whole preparation.

    `user` and `workdir` are where commands run by default; None is what the source
    says. Both must exist inside. Then `steps`, then `setup` are done, the latter as the
    default user. `start` runs in every sandbox made from the template, which is given
    out once `ready` says so (a command that exits with 0); on a tier whose captures go
    on it runs once, and every sandbox goes on from there. `resources` are for the
    steps, and for sandboxes that ask for none of their own; so is `isolation`. With `force` nothing that
    an earlier preparation left is used.
    """

    source: TemplateSource
    id: TemplateId | None = None
    data_plane: DataPlane = field(default_factory=EnvdPlane)
    env: Mapping[str, str] = field(default_factory=dict)
    user: str | None = None
    workdir: str | None = None
    steps: tuple[BuildStep | Forced, ...] = ()
    setup: tuple[CommandMode, ...] = ()
    start: CommandMode | None = None
    ready: ReadyProbe | None = None
    resources: SandboxResources | None = None
    isolation: Isolation | None = None
    login: RegistryLogin | None = None
    force: bool = False
    timeout_s: float = 600.0

    @property
    def is_built(self) -> bool:
        """Whether more is to be done than to take the source's files as they are."""
        return bool(self.steps or self.setup or self.start or isinstance(self.ready, Shell | Argv))

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
    startup: Startup = field(default_factory=Startup)
    resources: SandboxResources | None = None
    isolation: Isolation | None = None
    size_bytes: int = 0
    digest: str = ""
    failure: str = ""


PreparedTemplate = TemplateInfo
