"""Folders between this machine and a volume of a running server: tar streams, a piece at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlencode

from firkin.cli.client import ServerClient
from firkin.cli.failures import BAD_INPUT, CommandFailure
from firkin.law.errors import FirkinError
from firkin.runtime.local_trees import pieces_of
from firkin.runtime.volumes import place

_ROUTE = "/firkin/v1/volumes"
_TAR = "application/x-tar"


async def route_of(server: ServerClient, text: str) -> str:
    """Where the volume of that id or name is."""
    rows, _ = await server.call("GET", _ROUTE)
    found = [row["id"] for row in rows if text == row["id"]] or [row["id"] for row in rows if text == row["name"]]
    if not found:
        raise CommandFailure(f"no volume is called {text!r}; see: firkin volume list", exit_code=BAD_INPUT)
    if len(found) > 1:
        detail = f"{len(found)} volumes are called {text!r}; say which by its id: {', '.join(found)}"
        raise CommandFailure(detail, exit_code=BAD_INPUT)
    return f"{_ROUTE}/{found[0]}"


async def put(server: ServerClient, source: Path, target: str, *, owner: tuple[int, int] | None) -> int:
    """How many entries there were."""
    name, _, path = target.partition(":")
    route = await route_of(server, name)
    called = ""
    if not source.is_dir():
        path, _, called = path.rpartition("/")
    failures: list[FirkinError] = []
    pieces = _watched(pieces_of(source, name=called, owner=owner), failures)
    try:
        answer = await server.upload(f"{route}/archive", pieces, media_type=_TAR, params={"path": path or "/"})
    except CommandFailure as failure:
        raise (failures[0] if failures else failure) from None
    return int(answer["entries"])


async def _watched(pieces: AsyncIterator[bytes], failures: list[FirkinError]) -> AsyncIterator[bytes]:
    """The HTTP client tells of a failure in what it sends as of a broken connection."""
    try:
        async for piece in pieces:
            yield piece
    except FirkinError as failure:
        failures.append(failure)
        raise


async def get(server: ServerClient, source: str, target: Path) -> int:
    """How many entries there were."""
    name, _, path = source.partition(":")
    route = await route_of(server, name)
    entry, _ = await server.call("GET", f"{route}/entry", params={"path": path or "/"})
    pieces = server.download(f"{route}/archive?{urlencode({'path': path or '/'})}")
    return await place(entry["type"] == "directory", pieces, target)
