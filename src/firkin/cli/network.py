"""``firkin sandbox network``: what a sandbox may reach, what it did, and what was refused and why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from firkin.cli.options import server_options
from firkin.cli.output import json_option, plain, show_fields, show_json, show_rows
from firkin.cli.talking import call

_COLUMNS = ("at", "destination", "protocol", "port", "packets", "rule")


@click.command()
@click.argument("sandbox_id")
@server_options
@json_option
def network(sandbox_id: str, as_json: bool, **where: Any) -> None:
    """Show a sandbox's network policy, address and traffic, and the last flows that were refused, with the rule."""
    from firkin.law.ids import SandboxId

    told = call(where, "GET", f"/firkin/v1/sandboxes/{SandboxId(sandbox_id)}/network")
    if as_json:
        show_json(told)
    else:
        _show(told)


def _show(told: Mapping[str, Any]) -> None:
    show_fields(_fields(told))
    if told["trouble"]:
        click.echo(f"\n{plain(told['trouble'])}")
    click.echo("\nRefused, the latest first")
    show_rows(told["refused"], _COLUMNS, empty="nothing")


def _fields(told: Mapping[str, Any]) -> dict[str, Any]:
    policy, counters = told["policy"], told["counters"]
    fields = {
        "sandbox": told["sandboxID"],
        "internet": "yes" if policy["internet"] else "no",
        "allow out": _listed(policy.get("allowOut")),
        "deny out": _listed(policy.get("denyOut")),
        "rules": _listed(policy.get("rules")),
        "proxy": policy.get("egressProxy", {}).get("address"),
        "dns": _listed(policy.get("dnsServers")),
        "peers": _listed(policy.get("peers")),
        "ports": _listed(policy["allowPorts"]) or "none" if "allowPorts" in policy else "all",
        "public": "yes" if policy["allowPublicTraffic"] else "with a token",
        "address": told["address"],
    }
    if counters is not None:
        fields["sent"] = f"{counters['packetsOut']} packets, {counters['bytesOut']} bytes"
        fields["received"] = f"{counters['packetsIn']} packets, {counters['bytesIn']} bytes"
        fields["refused"] = f"{counters['packetsRefused']} packets"
    return {name: value for name, value in fields.items() if value not in (None, "")}


def _listed(entries: Any) -> str:
    return ", ".join(map(str, entries or ()))
