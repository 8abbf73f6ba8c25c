"""``firkin webhook``: where a running server posts every change of a sandbox's state. For the operator."""

from __future__ import annotations

import re
from typing import Any

import click

from firkin.cli.failures import CommandFailure
from firkin.cli.options import server_options
from firkin.cli.output import json_option, plain, show_fields, show_json, show_rows
from firkin.cli.talking import call
from firkin.law.lifecycle_events import EVENT_TYPES

_ROUTE = "/firkin/v1/webhooks"
_COLUMNS = ("id", "url", "events", "heard_up_to", "failures", "last_failure")
_ID = re.compile(r"[A-Za-z0-9]{1,64}")
_PREFIX = "sandbox.lifecycle."
_SHORT = [name.removeprefix(_PREFIX) for name in EVENT_TYPES]


@click.group()
def webhook() -> None:
    """Post every change of a sandbox's state to addresses of yours."""


@webhook.command()
@click.argument("address", metavar="URL")
@click.option("--secret", help="What deliveries are signed with (default: one is made and shown once).")
@click.option(
    "--event", "events", multiple=True, help=f"Only this event, repeatable: {', '.join(_SHORT)} (default: all)."
)
@server_options
@json_option
def add(address: str, secret: str | None, events: tuple[str, ...], as_json: bool, **where: Any) -> None:
    """Register URL. It hears of what happens from now on."""
    body: dict[str, Any] = {"url": address, "events": [_full(name) for name in events]}
    if secret is not None:
        body["secret"] = secret
    added = call(where, "POST", _ROUTE, body=body)
    if as_json:
        show_json(added)
    else:
        show_fields({name: added[name] for name in ("id", "url", "events", "secret") if name in added})


@webhook.command("list")
@server_options
@json_option
def list_(as_json: bool, **where: Any) -> None:
    """List webhooks, and how their deliveries go."""
    rows = call(where, "GET", _ROUTE)
    if as_json:
        show_json(rows)
        return
    show_rows([_shown(row) for row in rows], _COLUMNS, empty="no webhooks")


@webhook.command()
@click.argument("webhook_id")
@server_options
def remove(webhook_id: str, **where: Any) -> None:
    """Remove a webhook. What it has not heard yet, it never hears."""
    call(where, "DELETE", f"{_ROUTE}/{_id(webhook_id)}")
    click.echo(plain(webhook_id))


@webhook.command()
@click.argument("webhook_id")
@server_options
@json_option
def test(webhook_id: str, as_json: bool, **where: Any) -> int:
    """Post an event of no sandbox at once, and say what came of it."""
    outcome = call(where, "POST", f"{_ROUTE}/{_id(webhook_id)}/test")
    if as_json:
        show_json(outcome)
        return 0 if outcome["delivered"] else 1
    if not outcome["delivered"]:
        raise CommandFailure(f"webhook {webhook_id} did not take the event: {outcome['failure']}")
    click.echo("delivered")
    return 0


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    """`delivered` is the number of an event, not how many there were: a new one starts at the newest."""
    events = ",".join(name.removeprefix(_PREFIX) for name in row["events"])
    return {**row, "events": events, "heard_up_to": f"event {row['delivered']}"}


def _full(name: str) -> str:
    full = name if name.startswith(_PREFIX) else f"{_PREFIX}{name}"
    if full not in EVENT_TYPES:
        raise click.UsageError(f"no event is called {name!r}; there are {', '.join(_SHORT)}")
    return full


def _id(text: str) -> str:
    """A checked id: what is typed becomes part of a URL."""
    if _ID.fullmatch(text) is None:
        raise click.UsageError(f"{text[:64]!r} is not a webhook's id; firkin webhook list shows them")
    return text
