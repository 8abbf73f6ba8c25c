"""``firkin secret``: words that go out in place of a header and are never seen inside. Values come by stdin only."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click

from firkin.cli.options import pairs, server_options
from firkin.cli.output import json_option, plain, show_json, show_rows
from firkin.cli.talking import call, talk
from firkin.law.secrets import MAX_SECRET_BYTES

if TYPE_CHECKING:
    from firkin.cli.client import ServerClient

_COLUMNS = ("id", "name", "version", "updated_at")
_ROUTE = "/secrets"


@click.group()
def secret() -> None:
    """Secrets of the API key's owner. SECRET is a secret's name or its id.

    A rule of a sandbox's network names one as ${e2b.secrets.NAME}; it goes out in the header, and never inside.
    """


@secret.command("set")
@click.argument("name")
@click.option("--metadata", multiple=True, metavar="KEY=VALUE", help="Notes of your own, repeatable; replaces others.")
@server_options
@json_option
def set_(name: str, metadata: tuple[str, ...], as_json: bool, **where: Any) -> None:
    """Keep the secret NAME, or give it a new value. The value is read from standard input."""
    body: dict[str, Any] = {"value": _value()}
    if metadata:
        body["metadata"] = pairs(metadata, "--metadata")
    kept = talk(where, lambda server: _set(server, name, body))
    if as_json:
        show_json(_row(kept))
    else:
        click.echo(plain(kept["secretID"]))


@secret.command("list")
@server_options
@json_option
def list_(as_json: bool, **where: Any) -> None:
    """List secrets, newest first. Values are never shown."""
    rows = [_row(found) for found in talk(where, _all)]
    if as_json:
        show_json(rows)
    else:
        show_rows(rows, _COLUMNS, empty="no secrets")


@secret.command()
@click.argument("secret")
@server_options
def delete(secret: str, **where: Any) -> None:
    """Delete SECRET for good. Sandboxes whose rules name it can no longer reach those hosts."""
    call(where, "DELETE", _path(secret))
    click.echo(plain(secret))


def _value() -> str:
    """Standard input without its last line end: arguments are seen by every user of the machine."""
    if sys.stdin.isatty():
        typed: str = click.prompt("Value", hide_input=True, err=True)
        return typed
    raw = sys.stdin.buffer.read(MAX_SECRET_BYTES + 3)
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise click.UsageError("the value on standard input is not UTF-8") from None
    return text.removesuffix("\n").removesuffix("\r")


async def _set(server: ServerClient, name: str, body: dict[str, Any]) -> Any:
    """A new version of a known one, else a new secret."""
    known = {found["name"] for found in await _all(server)}
    if name.lower() in known:
        return (await server.call("POST", _path(name), body=body))[0]
    return (await server.call("POST", _ROUTE, body={"name": name, **body}))[0]


async def _all(server: ServerClient) -> list[Any]:
    """Every page."""
    found: list[Any] = []
    token: str | None = ""
    while token is not None:
        page, headers = await server.call("GET", _ROUTE, params={"nextToken": token} if token else None)
        found += page
        token = headers.get("X-Next-Token")
    return found


def _path(secret: str) -> str:
    return f"{_ROUTE}/{quote(secret, safe='')}"


def _row(found: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": found["secretID"],
        "name": found["name"],
        "version": found["currentVersion"],
        "updated_at": found["updatedAt"],
        "metadata": found["metadata"],
    }
