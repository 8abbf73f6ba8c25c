"""Lists of sandboxes: filters, order, and pages that stay right while sandboxes come and go.

A page token names the last sandbox shown (its start and id), not a position, so
a sandbox that ends meanwhile shifts nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from urllib.parse import unquote, unquote_plus

from firkin.e2b.descriptions import alias_of, started_at, template_of
from firkin.e2b.directory import LABEL_SPACE
from firkin.e2b.exchange import Exchange, Refused
from firkin.e2b.models import query_int
from firkin.e2b.pages_of import MAX_PAGE, read_token, token
from firkin.e2b.snapshot_names import namespace_of
from firkin.law.sandboxes import SandboxInfo
from firkin.law.states import SandboxState

_STATES = {"running": SandboxState.RUNNING, "paused": SandboxState.PAUSED}


@dataclass(frozen=True, slots=True, kw_only=True)
class ListQuery:
    states: frozenset[SandboxState] = frozenset(_STATES.values())
    metadata: Mapping[str, str] = field(default_factory=dict)
    template: str | None = None
    started_after: datetime | None = None
    ascending: bool = False
    limit: int | None = MAX_PAGE
    after: tuple[datetime, str] | None = None

    def matching(self, sandboxes: Sequence[SandboxInfo]) -> list[SandboxInfo]:
        """Those that the filters take, in order, on whatever page."""
        found = [info for info in sandboxes if self._matches(info)]
        return sorted(found, key=_position, reverse=not self.ascending)

    def rest(self, found: list[SandboxInfo]) -> list[SandboxInfo]:
        """Of those in order, what comes after the token. Not cut to the limit."""
        if self.after is None:
            return found
        if self.ascending:
            return [info for info in found if _position(info) > self.after]
        return [info for info in found if _position(info) < self.after]

    def _matches(self, info: SandboxInfo) -> bool:
        return (
            info.state in self.states
            and self.metadata.items() <= info.metadata.items()
            and (self.template is None or _is_template(info, self.template))
            and (self.started_after is None or started_at(info) >= self.started_after)
        )


def _position(info: SandboxInfo) -> tuple[datetime, str]:
    return started_at(info), info.id


def token_after(info: SandboxInfo) -> str:
    """The page token that continues behind `info`."""
    return token(_position(info))


def read_query(exchange: Exchange, *, paged: bool) -> ListQuery:
    """The filters out of a request. Raises `Refused` (400)."""
    query = exchange.query
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise _bad(f"order must be asc or desc, not {order[:32]!r}")
    started = query.get("startedAfter")
    return ListQuery(
        states=_states(query.get("state")),
        metadata=read_metadata(query.get("metadata", "")),
        template=_template(query.get("template")),
        started_after=None if started is None else _instant(started, "startedAfter"),
        ascending=order == "asc",
        limit=query_int(exchange, "limit", default=MAX_PAGE, least=1, most=MAX_PAGE) if paged else None,
        after=read_token(query["nextToken"]) if query.get("nextToken") else None,
    )


def read_metadata(text: str) -> dict[str, str]:
    """``k=v&k2=v2`` whose parts were quoted once or twice more than the query itself.

    Split first, then unquoted twice: a value may hold ``&`` and ``=``.
    """
    if text and "=" not in text:
        text = unquote(text)
    pairs: dict[str, str] = {}
    for part in filter(None, text.split("&")):
        name, equals, value = part.partition("=")
        if not equals:
            raise _bad("metadata must look like name=value&name=value")
        pairs[unquote(unquote_plus(name))] = unquote(unquote_plus(value))
    return pairs


def _is_template(info: SandboxInfo, text: str) -> bool:
    """By id or name, in capitals or not; it may stand behind the namespace of the template's owner."""
    space, _, name = text.rpartition("/")
    known = (template_of(info), alias_of(info), info.template_id, info.snapshot_id)
    owner = info.labels.get(LABEL_SPACE, namespace_of(info.owner))  # those of an earlier version have no such label
    return (name in known or name.lower() in known) and space in ("", owner)


def _states(text: str | None) -> frozenset[SandboxState]:
    if not text:
        return frozenset(_STATES.values())
    words = text.split(",")
    unknown = [word for word in words if word not in _STATES]
    if unknown:
        raise _bad(f"state must be running or paused, not {unknown[0][:32]!r}")
    return frozenset(_STATES[word] for word in words)


def _template(text: str | None) -> str | None:
    if text and ":" in text:
        raise _bad("template must be a template id or name without a tag")
    return text or None


def _instant(text: str, name: str) -> datetime:
    try:
        # A '+' of a time zone that was not quoted arrives as a space.
        when = datetime.fromisoformat(text.replace(" ", "+") if "T" in text else text)
    except ValueError:
        raise _bad(f"{name} must be an RFC 3339 time, e.g. 2026-01-31T12:00:00Z") from None
    return when if when.tzinfo else when.replace(tzinfo=UTC)


def _bad(message: str) -> Refused:
    return Refused(400, message, should_retry=False)
