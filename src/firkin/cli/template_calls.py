"""The work of ``firkin template``, in either of two places: a running server, or the state folder itself."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import msgspec

from firkin.cli.client import Json, ServerClient
from firkin.cli.discovery import ServerAddress, find_server, names_a_live_server, operator_of, running_server
from firkin.cli.failures import BAD_INPUT, CommandFailure, template_exit_code
from firkin.law.ids import TemplateId
from firkin.settings import Settings, read_settings

if TYPE_CHECKING:
    from firkin.e2b.native_templates import NewTemplate
    from firkin.law.templates import TemplateInfo

_PATH = "/firkin/v1/templates"
_BUILDS = "/firkin/v1/builds"


@dataclass(frozen=True, slots=True)
class Served:
    """A running server, and the state folder whose secret makes us its operator."""

    address: ServerAddress
    state_dir: Path

    def client(self) -> ServerClient:
        return ServerClient(self.address, operator=operator_of(self.state_dir))


@dataclass(frozen=True, slots=True)
class Direct:
    """No server runs: the state folder is opened here, for this command."""

    settings: Settings


Place = Served | Direct


def place_of(url: str | None, api_key: str | None, state_dir: Path | None) -> Place:
    settings = read_settings({"state_dir": state_dir})
    named = url is not None or (state_dir is None and names_a_live_server(settings.state_dir))
    if not named and running_server(state_dir) is None:
        return Direct(settings)
    return Served(find_server(url, api_key, state_dir if named else settings.state_dir), settings.state_dir)


async def prepare_template(place: Place, request: NewTemplate, *, quiet: bool) -> Json:
    """Prepare it, showing progress on a terminal; the template's record."""
    request.spec()
    with _progress(f"preparing {request.source}", quiet) as show:
        if isinstance(place, Direct):
            return await _prepare_here(place, request)
        body = msgspec.to_builtins(request)
        async with place.client() as server:
            async for line in server.lines("POST", _PATH, body=body):
                if "error" in line:
                    raise _failure(line["error"])
                if "template" in line:
                    return dict(line["template"])
                show(line.get("progress"))
    raise CommandFailure("the server ended the preparation without a result")


def _failure(error: Json) -> CommandFailure:
    text = str(error["message"])
    wrong_input = error.get("code") in (400, 404, 409)
    code = BAD_INPUT if wrong_input else template_exit_code(error.get("fault"), text)
    return CommandFailure(text, exit_code=code)


async def list_templates(place: Place) -> list[Json]:
    if isinstance(place, Served):
        async with place.client() as server:
            return list((await server.call("GET", _PATH))[0])
    from firkin.bootstrap import open_backend

    async with open_backend(place.settings) as backend:
        return [_json(info) for info in await backend.templates.list()]


async def delete_template(place: Place, template_id: str) -> None:
    checked = TemplateId(template_id)
    if isinstance(place, Served):
        async with place.client() as server:
            await server.call("DELETE", f"{_PATH}/{checked}")
        return
    from firkin.bootstrap import open_backend

    async with open_backend(place.settings) as backend:
        await backend.templates.delete(checked)


async def prune_layers(place: Place) -> int:
    """Returns how many layers were removed."""
    if isinstance(place, Served):
        async with place.client() as server:
            return int((await server.call("POST", f"{_PATH}/prune"))[0]["removed"])
    from firkin.bootstrap import open_backend

    async with open_backend(place.settings) as backend:
        return await backend.templates.prune()


async def list_builds(place: Place) -> list[Json]:
    async with _served(place).client() as server:
        return list((await server.call("GET", _BUILDS))[0])


async def cancel_build(place: Place, build_id: str) -> None:
    async with _served(place).client() as server:
        await server.call("DELETE", f"{_BUILDS}/{quote(build_id, safe='')}")


def _served(place: Place) -> Served:
    """Builds are a server's: without one there are none that go on."""
    if isinstance(place, Served):
        return place
    raise CommandFailure("no server runs on this state folder; builds are a running server's", exit_code=BAD_INPUT)


async def _prepare_here(place: Direct, request: NewTemplate) -> Json:
    from firkin.bootstrap import open_backend

    async with open_backend(place.settings) as backend:
        return _json(await backend.templates.prepare(request.spec()))


def default_id(source: str) -> str:
    """A template id made from a source's text: ``debian:12`` becomes ``debian-12``."""
    words = "".join(letter if letter.isalnum() or letter in "_." else "-" for letter in source)
    return words.strip("-.")[-100:].lstrip("-.") or "template"


def _json(info: TemplateInfo) -> Json:
    from firkin.e2b.native_templates import template_json

    return template_json(info)


@contextmanager
def _progress(title: str, quiet: bool) -> Iterator[Any]:
    """A spinner with the latest line of progress, on a terminal only."""
    if quiet or not sys.stderr.isatty():
        yield lambda message: None
        return
    from rich.console import Console
    from rich.markup import escape

    with Console(stderr=True).status(escape(title)) as status:
        yield lambda message: status.update(escape(f"{title}: {message}")) if message else None
