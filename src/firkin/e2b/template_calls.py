"""The control plane's calls about templates that are there: lists, names, tags, publishing, deleting."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from datetime import datetime
from operator import itemgetter
from typing import Any

import msgspec

from firkin.e2b.auth import ApiKey
from firkin.e2b.build_requests import bad
from firkin.e2b.descriptions import Describer, timestamp
from firkin.e2b.directory import SandboxDirectory
from firkin.e2b.exchange import Exchange, Refused
from firkin.e2b.models import Template, parse, query_int, query_word
from firkin.e2b.pages_of import Position, page, read_page
from firkin.e2b.settings import ServerSettings
from firkin.e2b.snapshot_names import check_tag, find_snapshot, require_team
from firkin.e2b.template_names import TemplateNames, builds_of, missing, names_of, tag_of
from firkin.law.builds import DEFAULT_TAG, Build, BuildControl, BuildStatus, NamedTemplate, Tagging, builder_of
from firkin.law.errors import NotFound, WrongState
from firkin.law.resources import MIB, SandboxResources
from firkin.law.templates import TemplateState

_TAGS_OF = uuid.UUID("6f0b8f0e-3f0a-5a55-9d0c-7e5bb5f3a1d2")
_MOST_GROUPS = 100
_ORDERS: dict[str, Callable[[tuple[str, Tagging]], Any]] = {
    "latest_desc": lambda pair: pair[1].at,
    "latest_asc": lambda pair: pair[1].at,
    "name_asc": lambda pair: pair[0],
    "name_desc": lambda pair: pair[0],
}


class AssignTags(msgspec.Struct, forbid_unknown_fields=True):
    target: str
    tags: list[str]


class RemoveTags(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    tags: list[str]


class UpdateTemplate(msgspec.Struct, forbid_unknown_fields=True):
    public: bool | None = None


class TemplateCalls:
    """Each method answers one kind of request of one tenant; `path` holds the path's variable parts."""

    def __init__(self, directory: SandboxDirectory, settings: ServerSettings) -> None:
        self._directory = directory
        self._backend = directory.backend
        self._settings = settings
        self._describe = Describer(settings, directory.mint)
        self._names = TemplateNames(directory.backend)

    @property
    def _builds(self) -> BuildControl:
        return builds_of(self._backend)

    async def list(self, exchange: Exchange, tenant: ApiKey, *path: str) -> None:
        """``GET /templates``: the tenant's own, and the operator's, which every tenant may use."""
        await exchange.answer_json(200, [shown for _, shown in await self._every(exchange, tenant)])

    async def list_v2(self, exchange: Exchange, tenant: ApiKey, *path: str) -> None:
        """``GET /v2/templates``: one page, the newest first."""
        after, limit = read_page(exchange)
        found = sorted(await self._every(exchange, tenant), key=lambda pair: pair[0], reverse=True)
        shown, headers = page(found, after=after, limit=limit)
        await exchange.answer_json(200, shown, headers)

    async def _every(self, exchange: Exchange, tenant: ApiKey) -> Sequence[tuple[Position, Template]]:
        """``teamID`` can be the tenant's own alone. Raises `Refused` (400)."""
        require_team(tenant, exchange.query.get("teamID") or None)
        found = [
            ((named.created_at, named.id), await self._described(named)) for named in await self._names.owned(tenant)
        ]
        for info in await self._backend.templates.list():
            if info.state is not TemplateState.DELETED and builder_of(info.id) is None:
                found.append(((info.created_at, str(info.id)), self._describe.template(info)))
        return found

    async def get(self, exchange: Exchange, tenant: ApiKey, *path: str) -> None:
        """With one page of its builds, the newest first; those of another tenant's are not told."""
        after, limit = read_page(exchange)
        named = await self._names.visible(tenant, path[0])
        if named is not None:
            builds = await self._builds.builds(named.id) if named.owner == tenant.name else []
            described = msgspec.to_builtins(await self._described(named))
            found = sorted((((build.created_at, build.id), build) for build in builds), reverse=True, key=itemgetter(0))
            shown, headers = page(found, after=after, limit=limit)
            body = {**described, "builds": [self._build(build) for build in shown]}
            await exchange.answer_json(200, body, headers)
            return
        info = await self._names.operators(path[0])
        if info is None:
            raise missing(path[0])
        await exchange.answer_json(200, {**msgspec.to_builtins(self._describe.template(info)), "builds": []})

    async def alias(self, exchange: Exchange, tenant: ApiKey, *path: str) -> None:
        """404 when nothing has the name; 403 when it is another tenant's alone."""
        named = await self._names.visible(tenant, path[0])
        if named is not None:
            if tag_of(path[0]) != DEFAULT_TAG and tag_of(path[0]) not in named.tags:
                raise missing(path[0])
            await exchange.answer_json(200, {"templateID": named.id, "public": named.public})
            return
        info = await self._names.operators(path[0])
        if info is None:
            raise missing(path[0])
        await exchange.answer_json(200, {"templateID": str(info.id), "public": True})

    async def delete(self, exchange: Exchange, tenant: ApiKey, *path: str) -> None:
        """``DELETE /templates/{id}``: a template of the tenant's, or a snapshot, which is one to clients."""
        tagged = ":" in path[0]  # as a snapshot's id always is; a template goes whole
        if tagged and await self._snapshot_deleted(tenant, path[0]):
            await exchange.answer(204)
            return
        named = await self._names.visible(tenant, path[0])
        if named is not None:
            if tagged and tag_of(path[0]) not in named.tags:
                raise missing(path[0])
            await self._delete(tenant, path[0])
        elif tagged or not await self._snapshot_deleted(tenant, path[0]):
            info = await self._names.operators(path[0])
            if info is None:
                raise missing(path[0])
            message = f"template '{info.id}' belongs to the operator of this server: firkin template delete {info.id}"
            raise Refused(403, message, should_retry=False)
        await exchange.answer(204)

    async def _delete(self, tenant: ApiKey, text: str) -> None:
        named = await self._names.own(tenant, text)
        try:
            await self._builds.delete(named.id)
        except WrongState:
            raise bad(f"cannot delete template '{named.name}': sandboxes of yours, running or paused, use it") from None
        except NotFound:  # another caller was first
            raise missing(text) from None

    async def _snapshot_deleted(self, tenant: ApiKey, text: str) -> bool:
        info = await find_snapshot(self._backend, tenant, text)
        if info is None:
            return False
        try:
            await self._backend.snapshots.delete(info.id)
        except NotFound as error:  # another caller was first
            raise missing(text) from error
        return True

    async def update(self, exchange: Exchange, tenant: ApiKey, *path: str) -> None:
        asked = parse(await exchange.body(self._settings.max_json_bytes) or b"{}", UpdateTemplate)
        named = await self._names.own(tenant, path[0])
        if asked.public is not None:
            named = await self._builds.publish(named.id, public=asked.public)
        await exchange.answer_json(200, {"names": names_of(named)})

    async def tag(self, exchange: Exchange, tenant: ApiKey, *path: str) -> None:
        asked = parse(await exchange.body(self._settings.max_json_bytes), AssignTags)
        name, colon, tag = asked.target.partition(":")
        if not name or (colon and not tag) or not asked.tags:
            raise bad("target must be NAME or NAME:TAG, and tags must not be empty")
        named = await self._names.own(tenant, asked.target)
        build = await self._names.tagged(named, tag_of(asked.target))
        tags = [check_tag(one) for one in asked.tags]
        await self._builds.tag(named.id, build.id, tags)
        await exchange.answer_json(201, {"tags": tags, "buildID": build.id})

    async def untag(self, exchange: Exchange, tenant: ApiKey, *path: str) -> None:
        asked = parse(await exchange.body(self._settings.max_json_bytes), RemoveTags)
        if ":" in asked.name:
            raise bad("name must be a template's, without a tag; the tags to remove stand in tags")
        named = await self._names.own(tenant, asked.name)
        if DEFAULT_TAG in asked.tags:
            raise bad("the tag 'default' cannot be removed")
        absent = [tag for tag in asked.tags if tag not in named.tags]
        if absent:
            raise Refused(404, f"tag '{absent[0][:128]}' does not exist for template '{named.name}'")
        await self._builds.untag(named.id, asked.tags)
        await exchange.answer(204)

    async def tags(self, exchange: Exchange, tenant: ApiKey, *path: str) -> None:
        named = await self._names.own(tenant, path[0])
        rows = [{"tag": tag, "buildID": to.build_id, "createdAt": timestamp(to.at)} for tag, to in _latest(named)]
        await exchange.answer_json(200, rows)

    async def tag_exists(self, exchange: Exchange, tenant: ApiKey, *path: str) -> None:
        named = await self._names.own(tenant, path[0])
        tag = check_tag(exchange.query.get("tag") or DEFAULT_TAG)
        await exchange.answer_json(200, {"exists": tag in named.tags, "normalizedTag": tag})

    async def tag_count(self, exchange: Exchange, tenant: ApiKey, *path: str) -> None:
        named = await self._names.own(tenant, path[0])
        wanted = exchange.query.get("search", "")
        await exchange.answer_json(200, {"total": sum(wanted in tag for tag in named.tags)})

    async def tag_groups(self, exchange: Exchange, tenant: ApiKey, *path: str) -> None:
        """Each tag with the build that it points to; what it pointed to before is not kept."""
        named = await self._names.own(tenant, path[0])
        first = query_int(exchange, "tagsCursor", default=0, least=0, most=1 << 31) or 0
        limit = query_int(exchange, "tagsLimit", default=_MOST_GROUPS, least=1, most=_MOST_GROUPS) or _MOST_GROUPS
        query_int(exchange, "assignmentLimit", default=1, least=1, most=_MOST_GROUPS)  # each has one
        order = query_word(exchange, "sort", _ORDERS, default="latest_desc")
        found = [(tag, to) for tag, to in _latest(named) if exchange.query.get("search", "") in tag]
        found.sort(key=_ORDERS[order], reverse=order.endswith("_desc"))
        shown = found[first : first + limit]
        groups = [
            {"tag": tag, "assignments": [await self._assignment(named, tag, to)], "hasMore": False} for tag, to in shown
        ]
        following = first + len(shown)
        await exchange.answer_json(
            200, {"tags": groups, "nextCursor": str(following) if following < len(found) else None}
        )

    async def tag_assignments(self, exchange: Exchange, tenant: ApiKey, *path: str) -> None:
        named = await self._names.own(tenant, path[0])
        query_int(exchange, "limit", default=1, least=1, most=_MOST_GROUPS)  # there is one
        if exchange.query.get("cursor"):
            raise bad("cursor is not one of this server: a tag points to one build, and there is no second page")
        to = named.tags.get(path[1])
        if to is None:
            raise Refused(404, f"tag '{path[1][:128]}' does not exist for template '{named.name}'")
        await exchange.answer_json(200, {"data": [await self._assignment(named, path[1], to)], "nextCursor": None})

    async def _assignment(self, named: NamedTemplate, tag: str, to: Tagging) -> dict[str, object]:
        build = await self._builds.get(to.build_id)
        return {
            "assignmentId": str(uuid.uuid5(_TAGS_OF, f"{named.id}:{tag}:{to.build_id}:{to.at.isoformat()}")),
            "buildId": build.id,
            "assignedAt": timestamp(to.at),
            "buildCreatedAt": timestamp(build.created_at),
            "buildFinishedAt": _when(build.finished_at),
        }

    async def _described(self, named: NamedTemplate) -> Template:
        builds = await self._builds.builds(named.id)
        ready = next((build for build in builds if build.status is BuildStatus.READY), None)
        shown = ready or (builds[0] if builds else None)
        resources = shown.resources if shown else SandboxResources()
        return Template(
            templateID=named.id,
            buildID=shown.id if shown else str(uuid.UUID(int=0)),
            cpuCount=resources.vcpus,
            memoryMB=resources.memory_bytes // MIB,
            diskSizeMB=resources.disk_bytes // MIB,
            public=named.public,
            aliases=[named.name],
            names=names_of(named),
            createdAt=timestamp(named.created_at),
            updatedAt=timestamp(named.updated_at),
            createdBy=None,
            lastSpawnedAt=_when(named.last_spawned_at),
            spawnCount=named.spawned,
            buildCount=len(builds),
            envdVersion=self._settings.envd_version,
            buildStatus=builds[0].status.value if builds else BuildStatus.WAITING.value,
        )

    def _build(self, build: Build) -> dict[str, object]:
        finished = {} if build.finished_at is None else {"finishedAt": timestamp(build.finished_at)}
        return {
            "buildID": build.id,
            "status": build.status.value,
            "createdAt": timestamp(build.created_at),
            "updatedAt": timestamp(build.updated_at),
            "cpuCount": build.resources.vcpus,
            "memoryMB": build.resources.memory_bytes // MIB,
            "diskSizeMB": build.resources.disk_bytes // MIB,
            "envdVersion": self._settings.envd_version,
            **finished,
        }


def _latest(named: NamedTemplate) -> list[tuple[str, Tagging]]:
    return sorted(named.tags.items(), key=lambda pair: pair[1].at, reverse=True)


def _when(instant: datetime | None) -> str | None:
    return None if instant is None else timestamp(instant)
