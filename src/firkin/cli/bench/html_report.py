"""One run as one page that needs nothing beside it: no script, no font, no picture from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from firkin.cli.bench.machine import describe
from firkin.cli.bench.plots import bars, strip, sweep
from firkin.cli.bench.report import Report, number
from firkin.cli.bench.samples import Series

_STYLE = """
:root{color-scheme:light dark;--fg:#1c1f24;--bg:#fdfdfc;--soft:#6a7078;--line:#dcdfe3;--ink:#2563a8;--warn:#b3541e;
--good:#2f7d4f;--k1:#b3541e;--k2:#2f7d4f;--k3:#7a4aa0;--k4:#a08a1e;--k5:#3a8f96}
@media (prefers-color-scheme:dark){:root{--fg:#e4e6e9;--bg:#15181c;--soft:#9aa1aa;--line:#343a42;--ink:#78b0f0;
--warn:#e59866;--good:#7fcf9c;--k1:#e59866;--k2:#7fcf9c;--k3:#c79ae8;--k4:#d9c65a;--k5:#7fcdd4}}
*{box-sizing:border-box}body{margin:0 auto;padding:1rem;max-width:62rem;background:var(--bg);color:var(--fg);
font:16px/1.5 system-ui,sans-serif}h1{font-size:1.5rem}h2{font-size:1.2rem;margin-top:2.2rem}
p.soft,td.soft{color:var(--soft)}.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.9rem;width:100%}
th,td{text-align:left;padding:.3rem .6rem;border-bottom:1px solid var(--line);vertical-align:top}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}.missed{color:var(--warn)}
.met{color:var(--good)}details{border-bottom:1px solid var(--line);padding:.4rem 0}summary{cursor:pointer}
summary b{font-weight:600}summary span{color:var(--soft);white-space:nowrap}svg{width:100%;height:auto;display:block}
svg text{font:12px system-ui,sans-serif;fill:var(--soft)}.dot{fill:var(--ink);opacity:.6}.grid{stroke:var(--line)}
.p50{stroke:var(--ink)}.p95{stroke:var(--k3)}.target{stroke:var(--warn);stroke-dasharray:5 4}.bar{fill:var(--ink)}
svg text.p50,svg text.p95,svg text.target{stroke:none}.line{fill:none;stroke-width:2}
.c0{stroke:var(--ink);background:var(--ink)}.c1{stroke:var(--k1);background:var(--k1)}
.c2{stroke:var(--k2);background:var(--k2)}.c3{stroke:var(--k3);background:var(--k3)}
.c4{stroke:var(--k4);background:var(--k4)}.c5{stroke:var(--k5);background:var(--k5)}
.legend span{margin-right:1rem;white-space:nowrap;font-size:.85rem}.legend i{display:inline-block;width:.8rem;
height:.2rem;margin-right:.35rem;vertical-align:middle}
"""
_READING = (
    "Percentiles are nearest rank. The tier beside a figure says what its samples can prove. Systems that isolate "
    "differently do different work; lifecycles are never averaged together."
)


def as_html(report: Report) -> str:
    body = "".join(
        [
            f"<h1>Firkin {escape(report.version)}</h1>",
            f"<p>{escape(_sentence(describe(report.machine)))}, client {escape(report.client)}, "
            f"{escape(str(report.machine.get('at', '')))}.</p>",
            f'<p class="soft">{escape(_READING)}</p>',
            _figures(report.figures),
            _peers(report.peers),
            _phases(report.phases),
            _sweeps(report.sweeps),
            _samples(report.figures),
            _absent(report),
        ]
    )
    head = (
        '<meta charset="utf-8"/><meta name="viewport" content="width=device-width, initial-scale=1"/>'
        f"<title>Firkin, measured</title><style>{_STYLE}</style>"
    )
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head><body>{body}</body></html>\n'


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _table(head: Sequence[str], rows: Iterable[str], *, numbers: Sequence[int]) -> str:
    cells = "".join(
        f'<th class="n">{escape(name)}</th>' if at in numbers else f"<th>{escape(name)}</th>"
        for at, name in enumerate(head)
    )
    return f'<div class="wide"><table><tr>{cells}</tr>{"".join(rows)}</table></div>'


def _figures(series: Sequence[Series]) -> str:
    systems = dict.fromkeys(each.system for each in series)
    parts = []
    for system in systems:
        mine = [each for each in series if each.system == system]
        parts.append(f"<h2>Figures: {escape(system)}</h2><p class='soft'>{escape(mine[0].isolation)}</p>")
        head = ("metric", "n", "p50", "p95", "p99", "unit", "target", "lifecycle", "tier")
        parts.append(_table(head, map(_figure, mine), numbers=(1, 2, 3, 4)))
    return "".join(parts)


def _figure(each: Series) -> str:
    kind = each.verdict.partition(",")[0]
    target = f'<span class="{kind}">{escape(str(each.target))}: {escape(each.verdict)}</span>' if each.target else ""
    failed = f" ({each.failures} failed)" if each.failures else ""
    return (
        f"<tr><td>{escape(each.name)}</td><td class='n'>{len(each.values)}{failed}</td>"
        f"<td class='n'>{number(each.p50)}</td><td class='n'>{_later(each, 95)}</td>"
        f"<td class='n'>{_later(each, 99)}</td><td>{escape(each.unit)}</td><td>{target}</td>"
        f"<td>{each.lifecycle.value}</td><td class='soft'>{each.tier}</td></tr>"
    )


def _later(each: Series, percent: float) -> str:
    return number(each.rank(percent)) if len(each.values) > 1 else ""


def _peers(series: Sequence[Series]) -> str:
    parts = []
    for metric in dict.fromkeys(each.metric for each in series):
        rows = [(each.system, each.p50 or 0.0, each.p95) for each in series if each.metric == metric and each.values]
        parts.append(f"<h3>{escape(metric)}</h3>{bars(rows, 'ms')}")
    if not parts:
        return ""
    isolation = {each.system: each.isolation for each in series}
    rows_of = (f"<tr><td>{escape(name)}</td><td>{escape(text)}</td></tr>" for name, text in isolation.items())
    intro = '<p class="soft">In turns, on the same root. A bar ends at p50, the tick is p95.</p>'
    return f"<h2>Beside others</h2>{intro}{''.join(parts)}{_table(('system', 'what isolates'), rows_of, numbers=())}"


def _phases(series: Sequence[Series]) -> str:
    parts = []
    for metric, system in dict.fromkeys((each.metric, each.system) for each in series):
        mine = [each for each in series if (each.metric, each.system) == (metric, system) and each.values]
        rows = [(each.part, each.p50 or 0.0, each.p95) for each in mine]
        parts.append(f"<h3>{escape(metric)}: {escape(system)}</h3>{bars(rows, 'ms')}")
    intro = '<p class="soft">As the server marks them; a name with a slash is a step within a phase.</p>'
    return f"<h2>Where the time goes</h2>{intro}{''.join(parts)}" if parts else ""


def _sweeps(series: Sequence[Series]) -> str:
    parts = []
    for system, axis, unit in dict.fromkeys((each.system, each.axis, each.unit) for each in series):
        mine = [each for each in series if (each.system, each.axis, each.unit) == (system, axis, unit)]
        for rank in (50, 95) if unit == "ms" else (50,):
            lines = {
                metric: [(each.level, each.rank(rank) or 0.0) for each in mine if each.metric == metric and each.values]
                for metric in dict.fromkeys(each.metric for each in mine)
            }
            parts.append(f"<h3>p{rank} by {escape(axis)}: {escape(system)}</h3>{sweep(lines, unit, axis)}")
    return f"<h2>How figures scale</h2>{''.join(parts)}" if parts else ""


def _samples(series: Sequence[Series]) -> str:
    drawn = "".join(_one(each) for each in series if len(each.values) > 1)
    return f"<h2>Every sample</h2>{drawn}" if drawn else ""


def _one(each: Series) -> str:
    note = f"<p class='soft'>{escape(each.note)}</p>" if each.note else ""
    events = f" ({escape(each.events)})" if each.events else ""
    return (
        f"<details><summary><b>{escape(each.name)}</b> <span>{escape(each.system)}, p50 {number(each.p50)} "
        f"{escape(each.unit)}</span></summary><p>{escape(each.workload)}{events}</p>{note}"
        f"{strip(each.values, each.unit, each.target)}</details>"
    )


def _absent(report: Report) -> str:
    if not report.absent:
        return ""
    rows = (f"<tr><td>{escape(name)}</td><td>{escape(why)}</td></tr>" for name, why in report.absent.items())
    return f"<h2>Not measured</h2>{_table(('what', 'why'), rows, numbers=())}"
