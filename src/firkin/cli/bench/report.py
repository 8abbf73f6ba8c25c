"""One run: its figures with samples, tier and isolation beside each, as JSON and as text for a terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from firkin import __version__
from firkin.cli.bench.machine import describe
from firkin.cli.bench.samples import Series
from firkin.cli.failures import BAD_INPUT, CommandFailure
from firkin.cli.output import plain


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """`absent` says of what was wanted and not measured, why."""

    machine: Mapping[str, Any]
    client: str
    series: Sequence[Series]
    absent: Mapping[str, str]
    version: str = __version__

    @property
    def figures(self) -> list[Series]:
        """Those that are neither levels of a sweep nor phases nor a peer's."""
        return [each for each in self.series if not (each.axis or each.part or each.metric.startswith("peer."))]

    @property
    def peers(self) -> list[Series]:
        return [each for each in self.series if each.metric.startswith("peer.")]

    @property
    def phases(self) -> list[Series]:
        return [each for each in self.series if each.part]

    @property
    def sweeps(self) -> list[Series]:
        return [each for each in self.series if each.axis]

    def as_json(self) -> dict[str, Any]:
        return {
            "firkin": self.version,
            "client": self.client,
            "machine": dict(self.machine),
            "series": [each.as_json() for each in self.series],
            "absent": dict(self.absent),
        }


def to_json(report: Report) -> str:
    return json.dumps(report.as_json(), indent=1, default=str)


def read_report(path: Path) -> Report:
    """What ``--json`` wrote. `CommandFailure` for another file."""
    try:
        data = json.loads(path.read_text(), parse_constant=_no_number)
        report = Report(
            machine=dict(data["machine"]),
            client=str(data["client"]),
            series=[Series.from_json(each) for each in data["series"]],
            absent={str(name): str(why) for name, why in data.get("absent", {}).items()},
            version=str(data["firkin"]),
        )
        describe(report.machine)  # all that is said of one must be there
        return report
    except OSError as error:
        raise CommandFailure(f"{path} cannot be read: {error.strerror}", exit_code=BAD_INPUT) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        message = f"{path} is not a report of firkin bench; write one with: firkin bench --json {path.name}"
        raise CommandFailure(message, exit_code=BAD_INPUT) from None


def _no_number(word: str) -> float:
    raise ValueError(f"{word} is no sample")


def show(report: Report) -> None:
    """Print the report for people."""
    click.echo(f"firkin {report.version}, client {report.client}; {describe(report.machine)}")
    click.echo()
    show_table(
        [("metric", "system", "n", "failed", "p50", "p95", "unit", "tier", "lifecycle", "target")], report.series
    )
    click.echo()
    for each in report.figures:
        _explain(each)
    for name, why in report.absent.items():
        click.echo(f"{name}: not measured: {plain(why)}")


def show_table(head: Sequence[tuple[str, ...]], series: Sequence[Series]) -> None:
    print_rows([*head, *(_row(each) for each in series)])


def print_rows(rows: Sequence[tuple[str, ...]]) -> None:
    """Columns as wide as what is in them."""
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _row(each: Series) -> tuple[str, ...]:
    return (
        each.name,
        each.system,
        str(len(each.values)),
        str(each.failures),
        number(each.p50),
        number(each.p95) if len(each.values) > 1 else "-",
        each.unit,
        each.tier,
        each.lifecycle.value,
        each.verdict,
    )


def _explain(each: Series) -> None:
    target = f"; wanted: {each.target}: {each.verdict}" if each.target else ""
    note = f"; {plain(each.note)}" if each.note else ""
    click.echo(f"{each.name} ({each.system}): {each.workload} [isolation: {each.isolation}]{target}{note}")


def number(value: float | None) -> str:
    """Three digits that count, as a reader wants them."""
    if value is None:
        return "-"
    size = abs(value)
    return f"{value:,.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.2f}"
