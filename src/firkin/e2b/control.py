"""The control plane: which call answers which path, and clear refusals for those that are not there yet."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeAlias
from urllib.parse import unquote

from firkin.e2b.auth import ApiKey, KeyRing, presented_key
from firkin.e2b.build_calls import UPLOADS, BuildCalls
from firkin.e2b.directory import SandboxDirectory
from firkin.e2b.event_calls import EventCalls
from firkin.e2b.exchange import Exchange, Refused
from firkin.e2b.models import allow_query
from firkin.e2b.native import PREFIX, NativeRoutes
from firkin.e2b.networks import NetworkCalls
from firkin.e2b.reports import ReportCalls
from firkin.e2b.sandboxes import SandboxCalls
from firkin.e2b.secret_calls import SecretCalls
from firkin.e2b.settings import ServerSettings
from firkin.e2b.snapshot_calls import SnapshotCalls
from firkin.e2b.template_calls import TemplateCalls
from firkin.e2b.traces import Traces
from firkin.e2b.volume_calls import VolumeCalls
from firkin.e2b.volume_content import PREFIX as CONTENT_PREFIX
from firkin.e2b.volume_content import VolumeContent

Call: TypeAlias = Callable[..., Awaitable[None]]
_Row: TypeAlias = tuple[str, str, Call, str]  # method, path, call, and the names of the query's fields it takes

_NOT_YET: tuple[tuple[str, str, str], ...] = (
    ("POST", "/v2/templates", "an older way to build; use POST /v3/templates"),
    ("POST", "/templates", "an older way to build; use POST /v3/templates"),
    ("POST", "/templates/*", "an older way to build; use POST /v3/templates"),
    ("POST", "/templates/*/builds/*", "an older way to build; use POST /v3/templates"),
    ("GET", "/teams", "accounts are the API keys of this server"),
    ("GET", "/events/webhooks", "webhooks are registered by the operator: firkin webhook add"),
    ("POST", "/events/webhooks", "webhooks are registered by the operator: firkin webhook add"),
    ("GET", "/events/webhooks/*", "webhooks are registered by the operator: firkin webhook list"),
    ("PATCH", "/events/webhooks/*", "webhooks are registered by the operator: firkin webhook add"),
    ("DELETE", "/events/webhooks/*", "webhooks are registered by the operator: firkin webhook remove"),
    ("GET", "/default-templates", "no template is marked as a default one"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Route:
    """`fields` None: whatever the query has, the call refuses the request."""

    call: Call
    fields: tuple[str, ...] | None


class ControlPlane:
    """Authenticates, finds the call of a path, and lets it answer."""

    def __init__(self, directory: SandboxDirectory, keys: KeyRing, settings: ServerSettings, traces: Traces) -> None:
        self._keys = keys
        self._native = NativeRoutes(directory.backend, settings.secret, keys.names, traces)
        self._content = VolumeContent(directory.backend, directory.mint)
        self._exact: dict[str, dict[str, _Route]] = {}
        self._patterns: dict[int, list[tuple[list[str], dict[str, _Route]]]] = {}
        sandboxes = SandboxCalls(directory, settings)
        snapshots = SnapshotCalls(directory, settings)
        self._building = BuildCalls(directory, settings)
        for method, pattern, call, fields in [
            *_calls(sandboxes, snapshots),
            ("PUT", "/sandboxes/*/network", NetworkCalls(directory, settings).update, ""),
            *_looking(ReportCalls(directory, settings), EventCalls(directory)),
            *_templates(TemplateCalls(directory, settings), self._building),
            ("POST", "/v2/templates/*/builds/*", self._building.start, ""),
            *_volumes(VolumeCalls(directory, settings)),
            *_secrets(SecretCalls(directory, settings)),
        ]:
            self._add(method, pattern, _Route(call=call, fields=tuple(fields.split())))
        for method, pattern, reason in _NOT_YET:
            self._add(method, pattern, _Route(call=_refusing(f"{method} {pattern}", reason), fields=None))

    def _add(self, method: str, pattern: str, route: _Route) -> None:
        if "*" not in pattern:
            self._exact.setdefault(pattern, {})[method] = route
            return
        parts = pattern.split("/")
        table = self._patterns.setdefault(len(parts), [])
        methods = next((methods for known, methods in table if known == parts), None)
        if methods is None:
            table.append((parts, {method: route}))
        else:
            methods[method] = route

    async def answer(self, exchange: Exchange) -> None:
        """Answer one request. Raises `Refused` and the law's errors, which the app answers."""
        if exchange.path == "/health" and exchange.method in ("GET", "HEAD"):
            await exchange.answer(200, b"Health check successful", [(b"content-type", b"text/plain")])
            return
        if exchange.path.startswith(UPLOADS):
            await self._building.upload(exchange)
            return
        if exchange.path.startswith(CONTENT_PREFIX):  # has tokens of its own
            await self._content.answer(exchange)
            return
        presented = presented_key(exchange.header(b"x-api-key"), exchange.header(b"authorization"))
        tenant = self._keys.tenant(presented)
        if tenant is None:
            raise Refused(401, "the API key is missing or not valid", should_retry=False)
        if exchange.path.startswith(PREFIX):
            await self._native.answer(exchange, tenant)
            return
        route, path = self._find(exchange)
        if route.fields is not None:
            allow_query(exchange, *route.fields)
        await route.call(exchange, tenant, *path)

    def _find(self, exchange: Exchange) -> tuple[_Route, list[str]]:
        text = exchange.raw_path.decode("latin-1").rstrip("/")
        parts = text.split("/")
        methods = self._exact.get(text)
        values: list[str] = []
        if methods is None or (exchange.method not in methods and self._matching(parts)):
            methods, values = self._matching(parts) or (None, [])
        if methods is None:
            raise Refused(404, f"there is no {exchange.path[:128]!r} here", should_retry=False)
        route = methods.get(exchange.method)
        if route is None:
            allowed = ", ".join(sorted(methods))
            raise Refused(405, f"{exchange.method} is not allowed here; use {allowed}", should_retry=False)
        return route, values

    def _matching(self, parts: list[str]) -> tuple[dict[str, _Route], list[str]] | None:
        for known, methods in self._patterns.get(len(parts), ()):
            if all(want in ("*", have) for want, have in zip(known, parts, strict=True)):
                return methods, [unquote(have) for want, have in zip(known, parts, strict=True) if want == "*"]
        return None


def _calls(sandboxes: SandboxCalls, snapshots: SnapshotCalls) -> list[_Row]:
    return [
        ("POST", "/sandboxes", sandboxes.create_v1, ""),
        ("POST", "/v2/sandboxes", sandboxes.create, ""),
        ("GET", "/sandboxes", sandboxes.list_v1, "metadata state"),
        ("GET", "/v2/sandboxes", sandboxes.list, "metadata state order startedAfter template nextToken limit"),
        ("GET", "/sandboxes/*", sandboxes.get, ""),
        ("DELETE", "/sandboxes/*", sandboxes.kill, ""),
        ("POST", "/sandboxes/*/connect", sandboxes.connect_v1, ""),
        ("POST", "/v2/sandboxes/*/connect", sandboxes.connect, ""),
        ("POST", "/sandboxes/*/resume", sandboxes.resume, ""),
        ("POST", "/sandboxes/*/pause", sandboxes.pause, ""),
        ("POST", "/sandboxes/*/snapshots", snapshots.capture, ""),
        ("POST", "/sandboxes/*/fork", snapshots.fork, ""),
        ("GET", "/snapshots", snapshots.list, "sandboxID name limit nextToken"),
        ("POST", "/sandboxes/*/timeout", sandboxes.set_timeout, ""),
        ("POST", "/sandboxes/*/refreshes", sandboxes.refresh, ""),
    ]


def _looking(reports: ReportCalls, events: EventCalls) -> list[_Row]:
    return [
        ("GET", "/sandboxes/metrics", reports.all_metrics, "sandbox_ids"),
        ("GET", "/sandboxes/*/metrics", reports.metrics, "start end"),
        ("GET", "/sandboxes/*/logs", reports.logs, "start limit"),
        ("GET", "/v2/sandboxes/*/logs", reports.logs_v2, "cursor limit direction level search"),
        ("GET", "/events/sandboxes", events.listed, "offset limit orderAsc types"),
        ("GET", "/events/sandboxes/*", events.of_sandbox, "offset limit orderAsc types"),
    ]


def _templates(templates: TemplateCalls, building: BuildCalls) -> list[_Row]:
    return [
        ("GET", "/templates", templates.list, "teamID"),
        ("GET", "/v2/templates", templates.list_v2, "teamID limit nextToken"),
        ("GET", "/templates/*", templates.get, "limit nextToken"),
        ("DELETE", "/templates/*", templates.delete, ""),
        ("PATCH", "/templates/*", templates.update, ""),
        ("PATCH", "/v2/templates/*", templates.update, ""),
        ("GET", "/templates/aliases/*", templates.alias, ""),
        ("POST", "/templates/tags", templates.tag, ""),
        ("DELETE", "/templates/tags", templates.untag, ""),
        ("GET", "/templates/*/tags", templates.tags, ""),
        ("GET", "/templates/*/tags/exists", templates.tag_exists, "tag"),
        ("GET", "/templates/*/tags/count", templates.tag_count, "search"),
        ("GET", "/templates/*/tags/groups", templates.tag_groups, "tagsCursor tagsLimit assignmentLimit search sort"),
        ("GET", "/templates/*/tags/*/assignments", templates.tag_assignments, "cursor limit"),
        ("POST", "/v3/templates", building.request, ""),
        ("GET", "/templates/*/files/*", building.upload_link, ""),
        ("GET", "/templates/*/builds/*/status", building.status, "logsOffset limit level"),
        ("GET", "/templates/*/builds/*/logs", building.logs, "cursor limit direction level source"),
    ]


def _volumes(volumes: VolumeCalls) -> list[_Row]:
    return [
        ("GET", "/volumes", volumes.list, ""),
        ("POST", "/volumes", volumes.create, ""),
        ("GET", "/volumes/*", volumes.get, ""),
        ("DELETE", "/volumes/*", volumes.delete, ""),
    ]


def _secrets(secrets: SecretCalls) -> list[_Row]:
    return [
        ("GET", "/secrets", secrets.list, "limit nextToken"),
        ("POST", "/secrets", secrets.create, ""),
        ("GET", "/secrets/*", secrets.get, ""),
        ("POST", "/secrets/*", secrets.update, ""),
        ("DELETE", "/secrets/*", secrets.delete, ""),
    ]


def _refusing(what: str, reason: str) -> Call:
    async def refuse(exchange: Exchange, tenant: ApiKey, *path: str) -> None:
        raise Refused(400, f"{what} is not supported by this server yet: {reason}", should_retry=False)

    return refuse
