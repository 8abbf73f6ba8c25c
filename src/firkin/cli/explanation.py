"""``firkin sandbox explain``: what became of a sandbox, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from firkin.cli.options import server_options
from firkin.cli.output import json_option, plain, show_fields, show_json
from firkin.cli.talking import call
from firkin.law.resources import GIB, MIB

_TIMES = ("created_at", "started_at", "paused_at", "deadline_at", "ended_at")


@click.command()
@click.argument("sandbox_id")
@server_options
@json_option
def explain(sandbox_id: str, as_json: bool, **where: Any) -> None:
    """Say what became of a sandbox, why and by whom; also for 7 days after its end."""
    from firkin.law.ids import SandboxId

    told = call(where, "GET", f"/firkin/v1/sandboxes/{SandboxId(sandbox_id)}/explain")
    if as_json:
        show_json(told)
    else:
        _show(told)


def _show(told: Mapping[str, Any]) -> None:
    click.echo(plain(told["summary"]))
    click.echo()
    show_fields(_fields(told))
    click.echo("\nWhat happened")
    for change in told["states"]:
        by = f" (by {change['actor']})" if change["actor"] else ""
        click.echo(f"  {plain(change['at'])}  {plain(change['became'])}: {plain(change['cause'])}{plain(by)}")
    if told["logs"]:
        click.echo("\nLast log entries")
    for line in told["logs"]:
        click.echo(f"  {plain(line['timestamp'])}  {plain(line['level'])}  {plain(line['message'])}")


def _fields(told: Mapping[str, Any]) -> dict[str, Any]:
    """What there is to say, in the order that a reader asks."""
    limits = told["limits"]
    peak = "not measured" if told["peak_memory_bytes"] is None else _size(told["peak_memory_bytes"])
    fields = {
        "sandbox": told["sandbox_id"],
        "state": told["state"],
        "cause": told["cause"],
        "detail": told["detail"],
        "ended by": told["actor"],
        "owner": told["owner"],
        "made from": told["snapshot_id"] or told["template_id"],
        **{name.removesuffix("_at"): told[name] for name in _TIMES},
        "lived": None if told["lived_s"] is None else f"{told['lived_s']:g} s",
        "memory": f"at most {peak} of {_size(limits['memory_bytes'])}",
        "disk": _size(limits["disk_bytes"]),
        "vcpus": limits["vcpus"],
    }
    return {name: value for name, value in fields.items() if value not in (None, "")}


def _size(count: int) -> str:
    return f"{count / GIB:.3g} GiB" if count >= GIB else f"{count / MIB:.4g} MiB"
