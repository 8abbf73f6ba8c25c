"""What a snapshot is called on the wire: ``<id>:default``, or ``<namespace>/<alias>:<tag>`` for one with a name.

The namespace is the tenant's; inside it a name means what it says, and
``default`` is the tag of a name that has none.
"""

from __future__ import annotations

import re

from firkin.e2b.auth import ApiKey
from firkin.e2b.exchange import Refused
from firkin.law.backend import SandboxBackend
from firkin.law.errors import InvalidSpec, NotFound
from firkin.law.ids import TemplateId
from firkin.law.snapshots import SnapshotFilter, SnapshotInfo

DEFAULT_TAG = "default"
_ALIAS = re.compile(r"[a-z0-9_-]{1,128}")
_TAG = re.compile(r"[A-Za-z0-9._-]{1,128}")


def namespace(tenant: ApiKey) -> str:
    """The tenant's name as the part of a name before the slash."""
    return namespace_of(tenant.name)


def namespace_of(owner: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", owner.lower()).strip("-") or "team"


def require_team(tenant: ApiKey, text: str | None) -> None:
    """``teamID`` is nobody else. Raises `Refused` (400)."""
    if text not in (None, tenant.name, namespace(tenant)):
        raise _bad(f"the API key is {tenant.name}'s, not that of the team {text[:64]!r}")


def check_tag(text: str) -> str:
    """The tag, if it can be one. Raises `Refused` (400)."""
    if _TAG.fullmatch(text) is None:
        raise _bad("Invalid name: a tag has 1 to 128 letters, digits, '.', '-' and '_'")
    return text


def stored_name(tenant: ApiKey, text: str) -> str:
    """``alias:tag`` out of ``[namespace/]alias[:tag]``. Raises `Refused` (400)."""
    space, slash, rest = text.strip().rpartition("/")
    alias, colon, tag = rest.lower().partition(":")
    tag = rest[len(alias) + 1 :] if colon else DEFAULT_TAG
    if slash and space != namespace(tenant):
        raise _bad(f"Invalid name: the namespace is {namespace(tenant)!r}, not {space[:64]!r}; leave it out")
    if _ALIAS.fullmatch(alias) is None:
        raise _bad("Invalid name: use 1 to 128 letters, digits, '-' and '_', and then a tag after ':' if you want one")
    return f"{alias}:{check_tag(tag)}"


async def free_name(backend: SandboxBackend, tenant: ApiKey, text: str) -> str:
    """As `stored_name`, and no template has it, the tenant's or the operator's. Raises `Refused` (400, 409)."""
    name = stored_name(tenant, text)
    alias = name.partition(":")[0]
    called = [] if backend.builds is None else await backend.builds.called(alias)
    if any(named.owner == tenant.name for named in called):
        raise _taken(alias)
    try:
        await backend.templates.get(TemplateId(alias))
    except (InvalidSpec, NotFound):
        return name
    raise _taken(alias)


def _taken(alias: str) -> Refused:
    return Refused(409, f"A template is called '{alias}'; choose another name", should_retry=False)


async def require_no_snapshot(backend: SandboxBackend, tenant: ApiKey, alias: str) -> None:
    """A template of the tenant's may be called so. Raises `Refused` (409)."""
    for info in await backend.snapshots.list(SnapshotFilter(owner=tenant.name)):
        if info.name and info.name.partition(":")[0] == alias:
            message = f"A snapshot is called '{info.name}'; choose another name, or delete the snapshot"
            raise Refused(409, message, should_retry=False)


async def find_snapshot(backend: SandboxBackend, tenant: ApiKey, text: str) -> SnapshotInfo | None:
    """The tenant's snapshot that a client means by `text`: its id, or its name with or without namespace and tag."""
    for info in await backend.snapshots.list(SnapshotFilter(owner=tenant.name)):
        if is_called(tenant, info, text):
            return info
    return None


def wire_id(tenant: ApiKey, info: SnapshotInfo) -> str:
    return f"{namespace(tenant)}/{info.name}" if info.name else f"{info.id}:{DEFAULT_TAG}"


def wire_names(tenant: ApiKey, info: SnapshotInfo) -> list[str]:
    return [wire_id(tenant, info)] if info.name else []


def is_called(tenant: ApiKey, info: SnapshotInfo, text: str) -> bool:
    """Whether `text`, as a client sends it, means that snapshot."""
    if text in (str(info.id), f"{info.id}:{DEFAULT_TAG}"):
        return True
    try:
        return bool(info.name) and stored_name(tenant, text) == info.name
    except Refused:
        return False


def _bad(message: str) -> Refused:
    return Refused(400, message, should_retry=False)
