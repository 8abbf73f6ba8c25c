"""The page of capabilities says what the drivers say."""

from __future__ import annotations

from pathlib import Path

from firkin.cli.capability_page import PAGE, page, render, shown_drivers
from firkin.law.capabilities import Capabilities, CapabilityName, Permanent

ROOT = Path(__file__).parents[2]


def test_the_page_is_what_the_drivers_say() -> None:
    assert (ROOT / PAGE).read_text() == page(), "run scripts/capabilities"


def test_the_page_has_a_row_for_each_capability_and_a_column_for_each_driver() -> None:
    rows = [line for line in page().splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == [name.value for name in CapabilityName]
    assert {row.count("|") for row in rows} == {len(shown_drivers()) + 2}


def test_a_reason_stands_once_below_however_often_it_holds() -> None:
    nothing = Capabilities.all_unsupported(Permanent("it does nothing"))
    text = render({"one": nothing, "two": nothing.with_supported(CapabilityName.PROCESS_RUN)})
    assert text.count("it does nothing") == 1
    assert "| `process.run` | no (1) | yes |" in text
