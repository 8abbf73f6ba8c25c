"""The rate of the host's time stamp counter, measured."""

from __future__ import annotations

import pytest

from firkin.host import counter_rates
from firkin.host.counter_rates import counter_khz


def test_two_measurements_of_one_counter_agree() -> None:
    first, second = counter_khz(), counter_khz()
    if not first:
        pytest.skip("this host has no counter that counts evenly")
    assert 100_000 < first < 10_000_000
    assert abs(first - second) < first * 0.0005


def test_a_counter_that_stops_or_changes_its_pace_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counter_rates, "_flags", lambda: {"tsc", "constant_tsc"})
    assert counter_khz() == 0
