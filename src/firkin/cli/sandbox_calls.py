"""The calls of ``firkin sandbox`` that take more than one request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlencode

from firkin.cli.client import Json, ServerClient
from firkin.cli.failures import BAD_INPUT, CommandFailure

_PAGE = 100
_MOST_LOGS = 1000


async def list_sandboxes(
    server: ServerClient, *, state: str | None = None, metadata: Mapping[str, str] | None = None, limit: int = 100_000
) -> list[Json]:
    """All pages, at most `limit` records."""
    params = {"limit": str(min(limit, _PAGE))}
    if state is not None:
        params["state"] = state
    if metadata:
        params["metadata"] = urlencode({quote(name): quote(value) for name, value in metadata.items()})
    found: list[Json] = []
    while len(found) < limit:
        page, headers = await server.call("GET", "/v2/sandboxes", params=params)
        found += page
        token = headers.get("X-Next-Token")
        if not token:
            break
        params["nextToken"] = token
    return found[:limit]


async def kill_sandboxes(server: ServerClient, wanted: Sequence[str] | None) -> tuple[list[str], list[CommandFailure]]:
    """Kill those, or with None every one of this key; the ids of the killed, and what failed for the others.

    With None, one that has ended meanwhile is no failure.
    """
    ids = [str(row["sandboxID"]) for row in await list_sandboxes(server)] if wanted is None else list(wanted)
    killed: list[str] = []
    failures: list[CommandFailure] = []
    for sandbox_id in ids:
        try:
            await server.call("DELETE", f"/sandboxes/{sandbox_id}")
            killed.append(sandbox_id)
        except CommandFailure as error:
            if wanted is not None or error.exit_code != BAD_INPUT:
                failures.append(error)
    return killed, failures


async def inspect_sandbox(server: ServerClient, sandbox_id: str) -> dict[str, Any]:
    """The record with its journal; of one that has ended, what is still known (to the operator only)."""
    journal, _ = await server.call("GET", f"/firkin/v1/sandboxes/{sandbox_id}/journal")
    if journal["ended"]:
        return {"sandboxID": sandbox_id, "state": "gone", "ended": journal["ended"], "journal": journal["entries"]}
    detail, _ = await server.call("GET", f"/sandboxes/{sandbox_id}")
    return {**detail, "isolation": await _isolation(server, sandbox_id), "journal": journal["entries"]}


async def _isolation(server: ServerClient, sandbox_id: str) -> Json | None:
    """Nothing for one that does not live now: paused without its memory, or ended meanwhile."""
    try:
        return dict((await server.call("GET", f"/firkin/v1/sandboxes/{sandbox_id}/isolation"))[0])
    except CommandFailure as error:
        if error.exit_code != BAD_INPUT:
            raise
        return None


async def sandbox_logs(server: ServerClient, sandbox_id: str, limit: int) -> list[Json]:
    """The newest `limit` entries, the oldest first, also of one that has ended. Of another's the operator gets less."""
    params = {"limit": str(min(limit, _MOST_LOGS)), "direction": "backward"}
    try:
        answer, _ = await server.call("GET", f"/v2/sandboxes/{sandbox_id}/logs", params=params)
    except CommandFailure as error:
        if error.exit_code != BAD_INPUT:
            raise
        journal, _ = await server.call("GET", f"/firkin/v1/sandboxes/{sandbox_id}/journal")
        return [{**entry, "level": "info"} for entry in journal["entries"][-limit:]]
    return list(reversed(answer.get("logs", [])))
