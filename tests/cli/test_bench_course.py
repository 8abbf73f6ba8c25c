"""The course of a benchmark: what fails is written down, and what was measured before is kept."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from firkin.cli.bench.breakdown import flat
from firkin.cli.bench.course import OF_A_TIER, STEPS, Course, Step
from firkin.cli.bench.pools import NOT_OFFERED, NotOffered
from firkin.cli.bench.samples import Lifecycle, Series
from firkin.cli.bench.stage import QUICK, Stage, isolation_of
from firkin.cli.discovery import ServerAddress
from firkin.cli.failures import CommandFailure

from .bench_reports import series

STAGE = Stage(
    address=ServerAddress(url="http://127.0.0.1:9", api_key="k"),
    template="base",
    amounts=QUICK,
    system="namespaces",
    isolation=isolation_of("namespaces"),
)


def course(monkeypatch: pytest.MonkeyPatch, *steps: Step) -> Course:
    for number, step in enumerate(steps):
        monkeypatch.setitem(STEPS, str(number), (f"step {number}", step))
    running = Course()
    running.run(STAGE, [str(number) for number in range(len(steps))])
    return running


def works(stage: Stage) -> Iterator[Series]:
    yield series(1.0)


def fails_late(stage: Stage) -> Iterator[Series]:
    yield series(2.0)
    raise RuntimeError("a disk fell out")


def is_not_offered(stage: Stage) -> Iterator[Series]:
    raise NotOffered(NOT_OFFERED)
    yield series(3.0)


def test_a_scenario_that_fails_keeps_what_it_had_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    run = course(monkeypatch, works, fails_late, works)
    assert [each.values for each in run.series] == [(1.0,), (2.0,), (1.0,)]
    assert run.absent == {"step 1 (namespaces)": "it failed: RuntimeError: a disk fell out"}
    assert run.failed


def test_what_a_server_does_not_offer_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    run = course(monkeypatch, is_not_offered, works)
    assert run.absent == {"step 0 (namespaces)": "not offered by this server"}
    assert not run.failed


def test_nothing_is_gone_through_when_the_first_scenario_fails_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(stage: Stage) -> Iterator[Series]:
        raise ConnectionRefusedError("nobody there")
        yield series(1.0)

    with pytest.raises(CommandFailure, match=r"step 0.*nobody there"):
        course(monkeypatch, refused, works)


def test_every_scenario_of_a_tier_is_one_of_all() -> None:
    assert set(OF_A_TIER) <= set(STEPS)


def test_phases_of_one_name_are_one_and_steps_stand_below_theirs() -> None:
    phases = [
        {"name": "ping", "ms": 1.0},
        {"name": "ping", "ms": 2.0},
        {"name": "set-up", "ms": 5.0, "inside": [{"name": "disk", "ms": 3.0}]},
    ]
    assert flat(phases) == {"ping": 3.0, "set-up": 5.0, "set-up/disk": 3.0}


def test_a_figure_has_its_tiers_target_and_no_other() -> None:
    cold = STAGE.series("start.cold_to_ready_ms", [1.0], Lifecycle.COLD_PREPARED, "x")
    assert str(cold.target) == "p50 ≤ 10, p95 ≤ 20"
    swept = STAGE.series("start.cold_to_ready_ms", [1.0], Lifecycle.COLD_PREPARED, "x", axis="alive", level=1)
    assert swept.target is None
