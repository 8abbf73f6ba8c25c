"""What a client asks to be built, read into the law's words. Every field is honoured or refused."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from firkin.e2b.exchange import Refused
from firkin.e2b.models import Megabytes
from firkin.law.build_steps import BuildStep, CopyStep, EnvStep, Forced, RunStep, UserStep, WorkdirStep
from firkin.law.errors import FirkinError
from firkin.law.ids import TemplateId
from firkin.law.processes import Argv, check_environment
from firkin.law.templates import OciSource, RegistryLogin, TemplateBase, TemplateSource, TemplateSpec

BUILD_WITHIN_S = 3600.0
DIGEST = re.compile(r"[0-9a-f]{64}")
_IMAGE = re.compile(r"[a-z0-9][A-Za-z0-9._/:@-]{0,255}")
_MODE = re.compile(r"0?[0-7]{3,4}")
_ACCOUNT = re.compile(r"[a-z_][a-z0-9_.-]{0,31}\$?")
_OWNER = re.compile(rf"[0-9]{{1,10}}|{_ACCOUNT.pattern}")
_MOST_STEPS = 500
# E2B's own base image: what this server calls base stands for it.
_BASE_IMAGE = re.compile(r"(?:docker\.io/)?e2bdev/base(?::[\w.-]+)?")
# bash if there is one, as a login shell, as E2B runs commands; every image has sh.
_LOGIN_SHELL = 'exec "$(command -v bash || echo sh)" -l -c "$0"'

Files = Callable[[str], Awaitable[str | None]]
Base = Callable[[str | None], Awaitable[TemplateId]]


class NewBuild(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """``POST /v3/templates``. `alias` is an older word for `name`."""

    name: str | None = None
    alias: str | None = None
    tags: list[str] | None = None
    teamID: str | None = None
    cpuCount: int | None = None
    memoryMB: Megabytes | None = None
    minFreeDiskMb: Megabytes | None = None


class Step(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    type: str
    args: list[str] | None = None
    filesHash: str | None = None
    force: bool | None = None
    forceUpload: bool | None = None
    resolveSymlinks: bool | None = None
    gzip: bool | None = None


class BuildStart(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """``POST /v2/templates/{id}/builds/{id}``."""

    fromImage: str | None = None
    fromTemplate: str | None = None
    fromImageRegistry: dict[str, Any] | None = None
    force: bool | None = None
    steps: list[Step] | None = None
    startCmd: str | None = None
    readyCmd: str | None = None


async def read_spec(asked: BuildStart, files: Files, base: Base) -> TemplateSpec:
    """`files` says where an uploaded archive is, `base` which template a name means. Raises `Refused`.

    None is the name of this server's own base.
    """
    source = await _source(asked, base)
    steps = asked.steps or []
    if len(steps) > _MOST_STEPS:
        raise bad(f"a build has at most {_MOST_STEPS} steps, this one has {len(steps)}")
    image, login = isinstance(source, OciSource), _login(asked)
    if login is not None and not image:
        raise bad("fromImageRegistry is a login for fromImage; nothing is fetched for this build, so leave it out")
    return TemplateSpec(
        source=source,
        login=login,
        user="user" if image else None,  # an image's own user and folder are for its own start
        workdir="/home/user" if image else None,
        steps=tuple([await _step(step, files) for step in steps]),
        start=_shell(asked.startCmd),
        ready=_shell(asked.readyCmd),
        force=bool(asked.force),
        timeout_s=BUILD_WITHIN_S,
    )


async def _source(asked: BuildStart, base: Base) -> TemplateSource:
    if asked.fromTemplate and asked.fromImage:
        raise bad("fromImage and fromTemplate exclude each other")
    if asked.fromTemplate:
        return TemplateBase(await base(asked.fromTemplate))
    if not asked.fromImage:
        raise bad("a build needs fromImage or fromTemplate")
    if _BASE_IMAGE.fullmatch(asked.fromImage):
        return TemplateBase(await base(None))
    if _IMAGE.fullmatch(asked.fromImage) is None or OciSource(asked.fromImage).path is not None:
        raise bad(f"{asked.fromImage[:128]!r} is no image; name one of a registry, such as debian:12")
    return OciSource(asked.fromImage)


def _login(asked: BuildStart) -> RegistryLogin | None:
    registry = asked.fromImageRegistry
    if not registry:
        return None
    match registry:
        case {"type": "registry", "username": str(username), "password": str(password), **more} if not more:
            return RegistryLogin(username=username, password=password)
        case {"type": "gcp", "serviceAccountJson": str(key), **more} if (
            not more
        ):  # Google's registries take the key as a password
            return RegistryLogin(username="_json_key", password=key)
        case {"type": "aws"}:
            raise bad(
                "registries of AWS want a token that this server cannot ask for: "
                "get one with 'aws ecr get-login-password' and give it as the password of the user AWS"
            )
    raise bad("fromImageRegistry must have a type (registry or gcp), what belongs to it, and nothing else")


async def _step(step: Step, files: Files) -> BuildStep | Forced:
    args = step.args or []
    if step.filesHash is not None and step.type.upper() != "COPY":
        raise bad(f"filesHash is for COPY; leave it out of the step {step.type[:32]}")
    match step.type.upper(), args:
        case "RUN", [command]:
            made: BuildStep = _run(command, None)
        case "RUN", [command, user]:
            made = _run(command, user or None)
        case "COPY", [source, destination, *rest] if len(rest) <= 2:
            made = await _copy(step, source, destination, [*rest, "", ""][:2], files)
        case "ENV", [_, _, *_] if len(args) % 2 == 0:
            made = _env(args)
        case "WORKDIR", [path] if path and "\0" not in path:
            made = WorkdirStep(path)
        case "USER", [name, *rest] if rest in ([], ["true"], ["false"], [""]):
            if _ACCOUNT.fullmatch(name) is None:
                raise bad(f"{name[:64]!r} is no user name")
            made = UserStep(name=name, sudo=rest == ["true"])
        case (("RUN" | "COPY" | "ENV" | "WORKDIR" | "USER"), _):
            raise bad(f"the step {step.type} cannot have these {len(args)} arguments")
        case _:
            raise bad(f"there is no step {step.type[:32]!r}; there are COPY, ENV, RUN, USER and WORKDIR")
    return Forced(made) if step.force else made


def _run(command: str, user: str | None) -> RunStep:
    if not command or "\0" in command:
        raise bad("RUN needs a command")
    return RunStep(command=Argv("/bin/sh", ("-c", _LOGIN_SHELL, command)), shown=command, user=user)


def _env(args: list[str]) -> EnvStep:
    variables = dict(zip(args[::2], args[1::2], strict=True))
    try:
        check_environment(variables)
    except FirkinError as error:
        raise bad(str(error)) from None
    return EnvStep(variables)


async def _copy(step: Step, source: str, destination: str, rest: list[str], files: Files) -> CopyStep:
    owner, mode = rest
    if step.filesHash is None or DIGEST.fullmatch(step.filesHash) is None:
        raise bad("COPY needs filesHash, a SHA-256 in lower-case hexadecimal digits")
    if any("\0" in word for word in (source, destination)) or not destination:
        raise bad("COPY needs a source and a destination")
    if owner and not all(_OWNER.fullmatch(part) for part in owner.split(":", 1)):
        raise bad(f"{owner[:64]!r} is no owner; it must be USER or USER:GROUP")
    if mode and _MODE.fullmatch(mode) is None:
        raise bad(f"{mode[:16]!r} is no file mode; it must be octal, such as 0644")
    archive = await files(step.filesHash)
    if archive is None:
        raise bad(f"the files of COPY {source[:128]} were not uploaded ({step.filesHash})")
    return CopyStep(
        archive=archive, content=step.filesHash, source=source, destination=destination, owner=owner, mode=mode
    )


def _shell(command: str | None) -> Argv | None:
    return Argv("/bin/sh", ("-c", _LOGIN_SHELL, command)) if command else None


def bad(message: str) -> Refused:
    return Refused(400, message, should_retry=False)
