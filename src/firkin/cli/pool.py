"""``firkin pool``: sandboxes that a running server keeps ready. For the operator."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import click

from firkin.cli.options import server_options
from firkin.cli.output import json_option, plain, show_fields, show_json, show_rows
from firkin.cli.talking import call
from firkin.law.isolation import Isolation
from firkin.law.warm_pool import WarmEvictionPolicy

_ROUTE = "/firkin/v1/pools"
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
    """Have a pool of that size from now on, and wait until it is full."""
    wish = {"depth": depth, "minReady": min_ready, "eviction": eviction, "isolation": isolation}
    body = {name: value for name, value in wish.items() if value is not None}
    found = call(where, "PUT", f"{_ROUTE}/{quote(template, safe='')}", body=body)
    if as_json:
        show_json(found)
        return
    click.echo(f"{plain(found['template'])}: {found['ready']} of {found['depth']} ready")
    for failure in found["failures"]:
        click.echo(plain(failure), err=True)


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
