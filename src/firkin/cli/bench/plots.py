"""Small plots as SVG text: dots of raw samples, lines of a sweep, bars. No script, no font, no style from elsewhere.

Colours are the page's own (classes), so that a plot follows its dark mode.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from firkin.cli.bench.samples import Target, percentile

_WIDTH = 480  # small, so that its words can be read on a phone, too
_LABEL = {"p50": (0.02, "start"), "target": (0.5, "middle"), "p95": (1.0, "end")}
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 12, 30
_MOST_DOTS = 300


def strip(values: Sequence[float], unit: str, target: Target | None = None) -> str:
    """Every sample in the order it was taken; lines at p50 and p95, and dashed at the target."""
    if not values:
        return ""
    bound = None if target is None else target.p50 if target.p50 is not None else target.p95
    top = _ceiling([percentile(values, 99) * 1.15, bound or 0.0])
    height, floor = 110, 90
    step = (_WIDTH - _LEFT - _RIGHT) / max(1, len(values))
    every = max(1, math.ceil(len(values) / _MOST_DOTS))
    dots = "".join(
        f'<circle class="dot" cx="{_LEFT + (at + 0.5) * step:.1f}" cy="{_y(value, top, floor):.1f}" r="2"/>'
        for at, value in enumerate(values)
        if at % every == 0
    )
    lines = _level(percentile(values, 50), top, floor, "p50") + _level(percentile(values, 95), top, floor, "p95")
    wanted = "" if bound is None else _level(bound, top, floor, "target")
    return _svg(height, _grid(top, floor, unit) + dots + lines + wanted, f"{len(values)} samples in order, {unit}")


def sweep(lines: Mapping[str, Sequence[tuple[int, float]]], unit: str, axis: str) -> str:
    """A line for each name over levels; the levels stand at equal distances, for they grow by factors."""
    levels = sorted({level for points in lines.values() for level, _ in points})
    if not levels:
        return ""
    top = _ceiling([value for points in lines.values() for _, value in points])
    height, floor = 220, 190
    room = (_WIDTH - _LEFT - _RIGHT) / max(1, len(levels) - 1) if len(levels) > 1 else 0
    places = {level: _LEFT + at * room for at, level in enumerate(levels)}
    drawn = [_grid(top, floor, unit)]
    for number, (name, points) in enumerate(lines.items()):
        path = " ".join(f"{places[level]:.1f},{_y(value, top, floor):.1f}" for level, value in points)
        drawn.append(f'<polyline class="line c{number % 6}" points="{path}"><title>{escape(name)}</title></polyline>')
    drawn += [f'<text x="{x:.1f}" y="{floor + 16}" text-anchor="middle">{level}</text>' for level, x in places.items()]
    drawn.append(f'<text x="{_WIDTH - _RIGHT}" y="{floor + 31}" text-anchor="end">{escape(axis)}</text>')
    return _svg(height + 8, "".join(drawn), f"{', '.join(lines)} over {axis}") + _legend(list(lines))


def bars(rows: Sequence[tuple[str, float, float | None]], unit: str) -> str:
    """A bar for each name, to the first value; a tick at the second."""
    if not rows:
        return ""
    label, row = 165, 22
    top = _ceiling([max(value, tick or 0.0) for _, value, tick in rows])
    scale = (_WIDTH - label - 80) / top
    drawn = []
    for at, (name, value, tick) in enumerate(rows):
        y = at * row + 4
        drawn.append(f'<text x="{label - 6}" y="{y + 12}" text-anchor="end">{escape(name)}</text>')
        drawn.append(f'<rect class="bar" x="{label}" y="{y}" width="{max(1.0, value * scale):.1f}" height="14"/>')
        if tick is not None:
            x = label + tick * scale
            drawn.append(f'<line class="p95" x1="{x:.1f}" x2="{x:.1f}" y1="{y}" y2="{y + 14}"/>')
        end = label + max(value, tick or 0.0) * scale
        drawn.append(f'<text x="{end + 6:.1f}" y="{y + 12}">{_short(value)} {escape(unit)}</text>')
    return _svg(len(rows) * row + 8, "".join(drawn), f"bars in {unit}: {', '.join(name for name, _, _ in rows)}")


def _svg(height: int, inside: str, title: str) -> str:
    head = f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" xmlns="http://www.w3.org/2000/svg">'
    return f"{head}<title>{escape(title)}</title>{inside}</svg>"


def _legend(names: Sequence[str]) -> str:
    keys = "".join(f'<span><i class="c{at % 6}"></i>{escape(name)}</span>' for at, name in enumerate(names))
    return f'<p class="legend">{keys}</p>'


def _y(value: float, top: float, floor: int) -> float:
    return floor - (floor - _TOP) * min(value, top) / top


def _level(value: float, top: float, floor: int, kind: str) -> str:
    y = _y(value, top, floor)
    part, anchor = _LABEL[kind]
    x = _LEFT + part * (_WIDTH - _LEFT - _RIGHT)
    return (
        f'<line class="{kind}" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="{kind}" x="{x:.0f}" y="{y - 2:.1f}" text-anchor="{anchor}">{kind} {_short(value)}</text>'
    )


def _grid(top: float, floor: int, unit: str) -> str:
    marks = ""
    for part in (0.0, 0.5, 1.0):
        y = _y(top * part, top, floor)
        marks += f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        marks += f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_short(top * part)}</text>'
    return marks + f'<text x="4" y="{floor + 16}">{escape(unit)}</text>'


def _ceiling(values: Sequence[float]) -> float:
    """A round number above all."""
    most = max(values, default=0.0)
    if most <= 0:
        return 1.0
    step: float = 10 ** math.floor(math.log10(most))
    return next(step * factor for factor in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if step * factor >= most * 0.999)


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
