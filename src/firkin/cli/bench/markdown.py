"""A run as tables in Markdown, written into a page between two marks, so that the page cannot be mistyped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from firkin.cli.bench.machine import describe
from firkin.cli.bench.report import Report, number
from firkin.cli.bench.samples import Series

BEGIN = "<!-- figures: begin (firkin bench --markdown) -->"
END = "<!-- figures: end -->"


def into_page(page: str, report: Report) -> str:
    """`page` with what is between the marks made anew; a page without marks is replaced."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    tables = as_markdown(report)
    return f"{before}{BEGIN}\n\n{tables}\n{END}{after}" if begin and end else f"{BEGIN}\n\n{tables}\n{END}\n"


def as_markdown(report: Report) -> str:
    sections = [
        f"Measured on {describe(report.machine)}; firkin {report.version}, client {report.client}, "
        f"{report.machine.get('at', '')}.",
        *_figures(report.figures),
        *_peers(report.peers),
        *_phases(report.phases),
        *_sweeps(report.sweeps),
        *_absent(report),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def _figures(series: Sequence[Series]) -> Iterable[str]:
    for system in dict.fromkeys(each.system for each in series):
        mine = [each for each in series if each.system == system]
        yield f"### Figures: {system}"
        yield f"Isolation: {mine[0].isolation}."
        head = ("metric", "n", "p50", "p95", "unit", "target", "reached", "lifecycle", "tier")
        yield _table(head, [_figure(each) for each in mine])


def _figure(each: Series) -> list[str]:
    count = f"{len(each.values)}, {each.failures} failed" if each.failures else str(len(each.values))
    p95 = number(each.p95) if len(each.values) > 1 else ""
    wanted = str(each.target) if each.target else ""
    name, tier = f"`{each.name}`", f"`{each.tier}`"
    return [name, count, number(each.p50), p95, each.unit, wanted, each.verdict, each.lifecycle.value, tier]


def _peers(series: Sequence[Series]) -> Iterable[str]:
    if not series:
        return
    yield "### Beside others, in the same run"
    ours = {each.metric: each.p50 for each in series if each.system == "firkin"}
    rows = [[each.system, each.metric.split(".")[1].removesuffix("_ms"), str(len(each.values)), number(each.p50),
             number(each.p95), _times(each.p50, ours.get(each.metric)), each.isolation] for each in series]  # fmt: skip
    yield _table(("system", "what", "n", "p50 ms", "p95 ms", "of Firkin's p50", "what isolates"), rows)


def _times(value: float | None, ours: float | None) -> str:
    return f"{value / ours:.1f} ×" if value is not None and ours else ""


def _phases(series: Sequence[Series]) -> Iterable[str]:
    for metric, system in dict.fromkeys((each.metric, each.system) for each in series):
        mine = [each for each in series if (each.metric, each.system) == (metric, system)]
        yield f"### Where the time goes: `{metric}`, {system}"
        rows = [[each.part, str(len(each.values)), number(each.p50), number(each.p95)] for each in mine]
        yield _table(("phase", "n", "p50 ms", "p95 ms"), rows)


def _sweeps(series: Sequence[Series]) -> Iterable[str]:
    for system, axis in dict.fromkeys((each.system, each.axis) for each in series):
        mine = [each for each in series if (each.system, each.axis) == (system, axis)]
        yield f"### How figures scale with {'clients at once' if axis == 'clients' else 'sandboxes alive'}: {system}"
        metrics = list(dict.fromkeys(each.metric for each in mine))
        head = [axis, *(f"`{metric.removeprefix('scale.')}`" for metric in metrics)]
        cell = _cells(mine)
        levels = sorted({each.level for each in mine})
        yield _table(head, [[str(level), *(cell(level, metric) for metric in metrics)] for level in levels])
        yield "p50 / p95 of each."


def _cells(series: Sequence[Series]) -> Callable[[int, str], str]:
    found = {(each.level, each.metric): each for each in series}

    def cell(level: int, metric: str) -> str:
        each = found.get((level, metric))
        if each is None or not each.values:
            return "-"
        shown = f"{number(each.p50)} / {number(each.p95)}" if len(each.values) > 1 else number(each.p50)
        return f"{shown} ({each.failures} failed)" if each.failures else shown

    return cell


def _absent(report: Report) -> Iterable[str]:
    if report.absent:
        yield "### Not measured"
        yield "\n".join(f"- {name}: {why}" for name, why in report.absent.items())
