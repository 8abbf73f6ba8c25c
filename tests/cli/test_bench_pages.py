"""A run as a page and as tables: whole, well formed, and needing nothing from elsewhere."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from firkin.cli.bench.html_report import as_html
from firkin.cli.bench.markdown import BEGIN, END, as_markdown, into_page
from firkin.cli.bench.plots import bars, strip, sweep
from firkin.cli.bench.report import Report, number
from firkin.cli.bench.samples import Lifecycle, Target

from .bench_reports import report, series


def full() -> Report:
    return report(
        series(*range(1, 1001), metric="start.a_ms", target=Target(p50=1, p95=2), note="<b>note</b>", events="A → B"),
        series(5.0, 6.0, metric="start.b_ms", target=Target(p50=9), failures=1),
        series(metric="start.none_ms"),
        series(3.0, system="microvm", isolation="a machine & more"),
        *(series(1.0, 2.0, metric=f"scale.{what}_ms", axis="alive", level=at) for what in "ab" for at in (0, 1000)),
        *(series(9.0, metric="scale.lives_per_s", unit="1/s", axis="clients", level=at) for at in (1, 8)),
        *(series(1.0, 2.0, metric="phase.create_ms", part=part) for part in ("boot", "boot/<disk>")),
        *(series(1.0, 2.0, metric="peer.run_ms", system=name) for name in ("firkin", "runc")),
    )


def test_the_page_is_well_formed_and_stands_alone() -> None:
    text = as_html(full())
    page = text.removeprefix("<!DOCTYPE html>")
    root = ElementTree.fromstring(page)
    assert {element.tag for element in root.iter()} & {"script", "link", "img", "iframe", "object"} == set()
    assert re.findall(r"(?:src|href)=|url\(|@import", page) == []
    assert re.findall(r"https?://(?!www\.w3\.org/2000/svg)", page) == []
    assert "prefers-color-scheme:dark" in page
    assert 'name="viewport"' in page


def test_the_page_has_every_section_and_escapes_what_it_shows() -> None:
    text = as_html(full())
    for expected in ("Beside others", "Where the time goes", "How figures scale", "Every sample", "Not measured"):
        assert f"<h2>{expected}</h2>" in text
    for expected in ("Some &lt;CPU&gt; &amp; Co", "boot/&lt;disk&gt;", "&lt;b&gt;note", "a machine &amp; more"):
        assert expected in text
    assert "missed" in text


def test_a_page_of_nothing_is_a_page() -> None:
    ElementTree.fromstring(as_html(report()).removeprefix("<!DOCTYPE html>"))


@pytest.mark.parametrize("values", [[1.0], [0.0, 0.0], [5.0] * 2000, [1e-6, 1e6]])
def test_every_plot_stays_within_its_box(values: list[float]) -> None:
    for drawn in (
        strip(values, "ms", Target(p95=3)),
        sweep({"a": list(enumerate(values[:10]))}, "ms", "alive"),
        bars([(str(at), value, None if at % 2 else value * 2) for at, value in enumerate(values[:10])], "ms"),
    ):
        svg = ElementTree.fromstring(drawn.partition("<p class")[0])
        _, _, width, height = map(float, svg.attrib["viewBox"].split())
        for element in svg.iter():
            for name, most in (("cx", width), ("x1", width), ("x2", width), ("cy", height), ("y1", height)):
                assert 0 <= float(element.attrib.get(name, 0)) <= most


def test_a_plot_of_nothing_is_nothing() -> None:
    assert (strip([], "ms"), sweep({}, "ms", "alive"), bars([], "ms")) == ("", "", "")


def test_many_samples_are_thinned_and_a_few_are_not() -> None:
    assert strip([1.0] * 100, "ms").count("<circle") == 100
    assert strip([1.0] * 10_000, "ms").count("<circle") <= 300


def test_the_tables_say_how_many_which_tier_and_what_isolates() -> None:
    text = as_markdown(full())
    assert "| `start.a_ms` | 1000 | 500 | 950 | ms | p50 ≤ 1, p95 ≤ 2 | missed | hot | `p99_decision_grade` |" in text
    assert "2, 1 failed" in text
    assert "Isolation: a machine & more." in text
    assert "| runc | run | 2 | 1.00 | 2.00 | 1.0 × |" in text
    assert "- peer docker: not installed" in text
    assert "| 1000 | 1.00 / 2.00 | 1.00 / 2.00 |" in text


def test_tables_take_the_place_between_the_marks_and_nothing_else() -> None:
    page = f"# Title\n\n{BEGIN}\nold\n{END}\n\nafter\n"
    once = into_page(page, full())
    assert once.startswith(f"# Title\n\n{BEGIN}\n")
    assert once.endswith(f"{END}\n\nafter\n")
    assert "old" not in once
    assert into_page(once, full()) == once


def test_a_page_without_marks_becomes_the_tables() -> None:
    assert into_page("", full()).startswith(BEGIN)


@pytest.mark.parametrize(
    ("value", "shown"), [(None, "-"), (0.0, "0.00"), (1.234, "1.23"), (12.34, "12.3"), (1234.5, "1,234")]
)
def test_numbers_have_three_digits_that_count(value: float | None, shown: str) -> None:
    assert number(value) == shown


def test_lifecycles_stand_beside_each_figure() -> None:
    found = as_markdown(report(series(1.0, lifecycle=Lifecycle.RESUMED)))
    assert "| resumed |" in found
