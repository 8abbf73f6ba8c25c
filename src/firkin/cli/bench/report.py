"""The figures, each with its samples, tier and isolation beside it: as text and as JSON with the raw samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from firkin import __version__
from firkin.cli.bench.samples import Series
from firkin.cli.output import plain


def as_json(machine: Mapping[str, Any], series: Sequence[Series], absent: Mapping[str, str], client: str) -> Any:
    return {
        "firkin": __version__,
        "client": client,
        "machine": dict(machine),
        "series": [each.as_json() for each in series],
        "absent_peers": dict(absent),
    }


def show(machine: Mapping[str, Any], series: Sequence[Series], absent: Mapping[str, str], client: str) -> None:
    """Print the report for people."""
    click.echo(
        f"firkin {__version__}, client {client}; {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['memory_mb']} MB, Linux {machine['kernel']}, load {machine['load']:.2f} at the start"
    )
    click.echo()
    header = ("metric", "n", "failed", "p50", "p95", "unit", "tier", "lifecycle")
    rows = [_row(each) for each in series]
    widths = [max(len(row[at]) for row in [header, *rows]) for at in range(len(header))]
    for row in [header, *rows]:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    click.echo()
    for each in series:
        _explain(each)
    for name, why in absent.items():
        click.echo(f"peer {name}: not measured: {plain(why)}")


def _row(each: Series) -> tuple[str, ...]:
    return (
        each.metric,
        str(len(each.values)),
        str(each.failures),
        _number(each.p50),
        _number(each.p95) if len(each.values) > 1 else "-",
        each.unit,
        each.tier,
        each.lifecycle.value,
    )


def _explain(each: Series) -> None:
    target = f"; wanted: {each.target}" if each.target else ""
    note = f"; {plain(each.note)}" if each.note else ""
    click.echo(f"{each.metric}: {each.workload} [isolation: {each.isolation}]{target}{note}")


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}"
