"""The calls of ``firkin sandbox`` that take more than one request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlencode

from firkin.cli.client import Json, ServerClient
from firkin.cli.failures import CommandFailure

_PAGE = 100


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


async def kill_sandboxes(server: ServerClient, wanted: Sequence[str] | None) -> list[str]:
    """Kill those, or with None every one of this key; their ids. The first unknown one is an error, after the rest."""
    ids = [str(row["sandboxID"]) for row in await list_sandboxes(server)] if wanted is None else list(wanted)
    killed: list[str] = []
    failure: CommandFailure | None = None
    for sandbox_id in ids:
        try:
            await server.call("DELETE", f"/sandboxes/{sandbox_id}")
            killed.append(sandbox_id)
        except CommandFailure as error:
            failure = failure or error
    if failure is not None and wanted is not None:
        raise failure
    return killed


async def inspect_sandbox(server: ServerClient, sandbox_id: str) -> dict[str, Any]:
    """The record with its journal; of one that has ended, what is still known (to the operator only)."""
    journal, _ = await server.call("GET", f"/firkin/v1/sandboxes/{sandbox_id}/journal")
    if journal["ended"]:
        return {"sandboxID": sandbox_id, "state": "gone", "ended": journal["ended"], "journal": journal["entries"]}
    detail, _ = await server.call("GET", f"/sandboxes/{sandbox_id}")
    return {**detail, "journal": journal["entries"]}
