"""The control plane's calls that build templates."""

from __future__ import annotations

import hashlib
import hmac
import time
from dataclasses import replace
from urllib.parse import quote

from firkin.e2b.auth import ApiKey
from firkin.e2b.build_requests import DIGEST, BuildStart, NewBuild, bad, read_spec
from firkin.e2b.descriptions import timestamp
from firkin.e2b.directory import SandboxDirectory
from firkin.e2b.exchange import Exchange, Refused
from firkin.e2b.isolation_reports import wish_of
from firkin.e2b.models import parse, query_int, query_word
from firkin.e2b.numbers import read_whole
from firkin.e2b.settings import ServerSettings
from firkin.e2b.signatures import equal
from firkin.e2b.snapshot_names import check_tag, require_no_snapshot, require_team, stored_name
from firkin.e2b.template_names import TemplateNames, builds_of, names_of, require_ready
from firkin.law.builds import DEFAULT_TAG, Build, BuildControl, BuildEntry, BuildStatus, NamedTemplate
from firkin.law.errors import InvalidSpec, NotFound, WrongState
from firkin.law.ids import TemplateId
from firkin.law.logs import LogLevel
from firkin.law.resources import MIB, SandboxResources
from firkin.law.sandboxes import FromTemplate

UPLOADS = "/build-files/"
_LINK_VALID_S = 3600
_BASE = "base"
_MAX_START = 8 << 20
_MOST_ENTRIES = 100
_LEVELS = {"debug": LogLevel.DEBUG, "info": LogLevel.INFO, "warn": LogLevel.WARN, "error": LogLevel.ERROR}


class BuildCalls:
    """Each method answers one kind of request of one tenant; `path` holds the path's variable parts."""

    def __init__(self, directory: SandboxDirectory, settings: ServerSettings) -> None:
        self._backend = directory.backend
        self._settings = settings
        self._names = TemplateNames(directory.backend)

    @property
    def _builds(self) -> BuildControl:
        return builds_of(self._backend)

    async def request(self, exchange: Exchange, tenant: ApiKey, *path: str) -> None:
        asked = parse(await exchange.body(self._settings.max_json_bytes), NewBuild)
        text = asked.name or asked.alias
        if not text or (asked.name and asked.alias and asked.name != asked.alias):
            raise bad("a template needs one name")
        require_team(tenant, asked.teamID)
        name, _, tag = stored_name(tenant, text).partition(":")
        tags = [check_tag(one) for one in asked.tags or []] + ([tag] if ":" in text else [])
        await require_no_snapshot(self._backend, tenant, name)
        named, build = await self._builds.request(tenant.name, name, tags or [DEFAULT_TAG], _resources(asked))
        await exchange.answer_json(202, _requested(named, build))

    async def start(self, exchange: Exchange, tenant: ApiKey, *path: str) -> None:
        asked = parse(await exchange.body(_MAX_START), BuildStart)
        build = await self._own_build(tenant, path[0], path[1])
        if build.status is not BuildStatus.WAITING:
            raise bad("build is not in waiting state")

        async def files(digest: str) -> str | None:
            return await self._builds.files(tenant.name, digest)

        async def base(text: str | None) -> TemplateId:
            if text is None:
                info = await self._names.operators(_BASE)
                if info is None:
                    raise bad(
                        f"this server has no template {_BASE}; ask its operator for it: firkin template prepare {_BASE}"
                    )
                require_ready(info)
                return info.id
            meant = await self._names.meant(tenant, text)
            if not isinstance(meant.source, FromTemplate):
                raise bad(f"'{text[:128]}' is a snapshot; a template is built on an image or a template")
            return meant.source.template_id

        spec = replace(await read_spec(asked, files, base), isolation=wish_of(exchange))
        if self._settings.tenants is not None:
            self._settings.tenants.require_source(spec.source)
        try:
            await self._builds.start(build.id, spec)
        except WrongState:  # another call was first
            raise bad("build is not in waiting state") from None
        await exchange.answer(202)

    async def status(self, exchange: Exchange, tenant: ApiKey, *path: str) -> None:
        build = await self._own_build(tenant, path[0], path[1])
        offset = query_int(exchange, "logsOffset", default=0, least=0, most=1 << 31) or 0
        least = _level(exchange)
        said = [entry for entry in await self._builds.entries(build.id) if entry.line.level >= least]
        shown = said[offset : offset + self._limit(exchange)]
        answer: dict[str, object] = {
            "templateID": build.template_id,
            "buildID": build.id,
            "status": build.status.value,
            "logs": [],
            "logEntries": [_entry(entry) for entry in shown],
        }
        if build.status is BuildStatus.ERROR:
            answer["reason"] = _reason(build)
        await exchange.answer_json(200, answer)

    async def logs(self, exchange: Exchange, tenant: ApiKey, *path: str) -> None:
        """Newest last, unless ``direction=backward``; ``cursor`` is an instant in milliseconds.

        There is one place that keeps them, so either ``source`` is that one.
        """
        query_word(exchange, "source", ("temporary", "persistent"), default="persistent")
        backward = query_word(exchange, "direction", ("forward", "backward"), default="forward") == "backward"
        build = await self._own_build(tenant, path[0], path[1])
        cursor = query_int(exchange, "cursor", default=None, least=0, most=1 << 53)
        least = _level(exchange)
        entries = [
            entry
            for entry in await self._builds.entries(build.id)
            if entry.line.level >= least and (cursor is None or (entry.at.timestamp() * 1000 < cursor) is backward)
        ]
        if backward:
            entries.reverse()
        await exchange.answer_json(200, {"logs": [_entry(entry) for entry in entries[: self._limit(exchange)]]})

    async def upload_link(self, exchange: Exchange, tenant: ApiKey, *path: str) -> None:
        """Where to send the archive of a COPY step. The link needs no key: it is signed, and valid for an hour."""
        await self._names.own(tenant, path[0])
        digest = path[1]
        if DIGEST.fullmatch(digest) is None:
            raise bad("the hash must be a SHA-256 in lower-case hexadecimal digits")
        present = await self._builds.files(tenant.name, digest) is not None
        expires = int(time.time()) + _LINK_VALID_S
        query = f"owner={quote(tenant.name)}&expires={expires}&signature={self._sign(tenant.name, digest, expires)}"
        url = f"{_origin(exchange)}{UPLOADS}{digest}?{query}"
        await exchange.answer_json(201, {"present": present, "url": url})

    async def upload(self, exchange: Exchange) -> None:
        """``PUT`` to such a link."""
        if exchange.method != "PUT":
            raise Refused(405, f"{exchange.method} is not allowed here; use PUT", should_retry=False)
        digest, query = exchange.path.removeprefix(UPLOADS), exchange.query
        owner, expires = query.get("owner", ""), read_whole(query.get("expires", ""))
        signature = query.get("signature", "")
        known = DIGEST.fullmatch(digest) is not None
        if expires is None or not known or not equal(signature, self._sign(owner, digest, expires)):
            raise Refused(403, "the signature of this link is not valid; ask for a new link", should_retry=False)
        if expires < time.time():
            raise Refused(403, "this link has expired; ask for a new one", should_retry=False)
        await self._builds.put_files(owner, digest, exchange.chunks())
        await exchange.answer(200)

    def _sign(self, owner: str, digest: str, expires: int) -> str:
        text = f"build-files:{len(owner)}:{owner}:{digest}:{expires}"
        return hmac.new(self._settings.secret, text.encode("utf-8", "surrogateescape"), hashlib.sha256).hexdigest()

    async def _own_build(self, tenant: ApiKey, template: str, build_id: str) -> Build:
        named = await self._names.own(tenant, template)
        try:
            build = await self._builds.get(build_id)
        except (NotFound, InvalidSpec):
            build = None
        if build is None or build.template_id != named.id:
            raise Refused(404, f"build '{build_id[:64]}' not found", should_retry=False)
        return build

    def _limit(self, exchange: Exchange) -> int:
        return query_int(exchange, "limit", default=_MOST_ENTRIES, least=1, most=_MOST_ENTRIES) or _MOST_ENTRIES


def _resources(asked: NewBuild) -> SandboxResources:
    if asked.minFreeDiskMb is not None and asked.minFreeDiskMb < 0:
        raise bad(f"minFreeDiskMb is {asked.minFreeDiskMb}; it must be 0 or more")
    usual = SandboxResources()
    free = (asked.minFreeDiskMb or 0) * MIB
    try:
        return SandboxResources(
            vcpus=usual.vcpus if asked.cpuCount is None else asked.cpuCount,
            memory_bytes=usual.memory_bytes if asked.memoryMB is None else asked.memoryMB * MIB,
            disk_bytes=max(usual.disk_bytes, free + free // 16),  # a file system keeps some of it for itself
        )
    except InvalidSpec as error:
        raise bad(str(error)) from None


def _requested(named: NamedTemplate, build: Build) -> dict[str, object]:
    return {
        "templateID": named.id,
        "buildID": build.id,
        "public": named.public,
        "names": names_of(named),
        "tags": list(build.tags),
        "aliases": [named.name],
    }


def _reason(build: Build) -> dict[str, object]:
    step = {"step": build.failed_step} if build.failed_step else {}
    return {"message": build.failure, "logEntries": [], **step}


def _entry(entry: BuildEntry) -> dict[str, object]:
    level = "debug" if entry.line.level < LogLevel.INFO else entry.line.level.name.lower()
    return {"timestamp": timestamp(entry.at), "level": level, "message": entry.line.message, "step": entry.line.step}


def _level(exchange: Exchange) -> LogLevel:
    return _LEVELS[query_word(exchange, "level", _LEVELS, default="debug")]


def _origin(exchange: Exchange) -> str:
    """As the client reached us: it is who will follow the link."""
    host = (exchange.header(b"x-forwarded-host") or exchange.header(b"host") or b"").decode("latin-1")
    scheme = (exchange.text_header(b"x-forwarded-proto") or str(exchange.scope.get("scheme") or "http")).strip()
    return f"{scheme if scheme in ('http', 'https') else 'http'}://{host}"
