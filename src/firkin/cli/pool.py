"""``firkin pool``: sandboxes that a running server keeps ready. For the operator."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import click

from firkin.cli.failures import CommandFailure
from firkin.cli.options import server_options
from firkin.cli.output import json_option, plain, show_fields, show_json, show_rows
from firkin.cli.talking import call
from firkin.law.isolation import Isolation
from firkin.law.warm_pool import WarmEvictionPolicy

_ROUTE = "/firkin/v1/pools"
_FULL_WITHIN_S, _LOOK_EVERY_S = 600.0, 0.25
_COLUMNS = ("template", "depth", "minReady", "ready", "hits", "misses", "failure")


@click.group()
def pool() -> None:
    """Keep sandboxes of a template ready, so that creates are served in a few milliseconds.

    TEMPLATE is a template's id or its name. A create takes the sandbox that has waited
    longest; the server makes another when nobody is waiting for it.
    """


@pool.command("set")
@click.argument("template")
@click.option("--depth", type=click.IntRange(min=0), required=True, help="How many to keep ready; 0 removes the pool.")
@click.option("--min-ready", type=click.IntRange(min=0), help="Give these up last when memory is short (default: all).")
@click.option(
    "--evict",
    "eviction",
    type=click.Choice([policy.value for policy in WarmEvictionPolicy]),
    default=WarmEvictionPolicy.OLDEST.value,
    show_default=True,
    help="Which go first where there are too many.",
)
@click.option(
    "--isolation",
    type=click.Choice([isolation.value for isolation in Isolation]),
    help="The tier that they are made on (default: the template's, else the server's).",
)
@server_options
@json_option
def set_(
    template: str,
    depth: int,
    min_ready: int | None,
    eviction: str,
    isolation: str | None,
    as_json: bool,
    **where: Any,
) -> None:
    """Have a pool of that size from now on, and wait until it is full.

    Ends with 1 when it is not: when it cannot be for now, or within ten minutes. The server goes on filling it.
    """
    wish = {"depth": depth, "minReady": min_ready, "eviction": eviction, "isolation": isolation}
    body = {name: value for name, value in wish.items() if value is not None}
    route = f"{_ROUTE}/{quote(template, safe='')}"
    found = call(where, "PUT", route, body=body)
    until = time.monotonic() + _FULL_WITHIN_S
    while (short := found["ready"] < found["depth"]) and not _why_short(found) and time.monotonic() < until:
        time.sleep(_LOOK_EVERY_S)
        found = {**found, **call(where, "GET", route)}
    if as_json:
        show_json(found)
    else:
        click.echo(f"{plain(found['template'])}: {found['ready']} of {found['depth']} ready")
    if short:
        why = _why_short(found) or f"it was not filled within {_FULL_WITHIN_S:g} s"
        raise CommandFailure(f"the pool is not full: {plain(why)}; the server goes on filling it")


def _why_short(found: Mapping[str, Any]) -> str:
    """What keeps it from being filled; empty while it is being filled."""
    return str(found.get("held") or found.get("failure") or "")


@pool.command("list")
@server_options
@json_option
def list_(as_json: bool, **where: Any) -> None:
    """List the pools: what is ready, and how many creates they served (hits) or could not (misses)."""
    rows = call(where, "GET", _ROUTE)
    if as_json:
        show_json(rows)
    else:
        show_rows(rows, _COLUMNS, empty="no pools")


@pool.command()
@click.argument("template")
@server_options
@json_option
def show(template: str, as_json: bool, **where: Any) -> None:
    """Show a pool."""
    found = call(where, "GET", f"{_ROUTE}/{quote(template, safe='')}")
    if as_json:
        show_json(found)
    else:
        show_fields(found)


@pool.command()
@click.argument("template")
@click.option("--count", type=click.IntRange(min=1), default=1, show_default=True, help="How many at most.")
@server_options
def evict(template: str, count: int, **where: Any) -> None:
    """End some of those that wait. The pool fills itself again after a few seconds."""
    report = call(where, "POST", f"{_ROUTE}/{quote(template, safe='')}/evict", body={"count": count})
    click.echo(f"{report['evicted']} ended, {report['ready']} ready")


@pool.command()
@click.argument("template")
@server_options
def delete(template: str, **where: Any) -> None:
    """Remove a pool and end what waits in it."""
    call(where, "DELETE", f"{_ROUTE}/{quote(template, safe='')}")
    click.echo(plain(template))
