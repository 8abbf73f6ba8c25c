"""The benchmark's arithmetic, its notion of evidence, and what it counts as left behind."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from firkin.cli.bench.bundle import make_root, write_bundle
from firkin.cli.bench.leftovers import count_leftovers, difference
from firkin.cli.bench.report import as_json, show
from firkin.cli.bench.samples import Lifecycle, Series, percentile, tier
from firkin.cli.bench.stage import isolation_of, machine, meminfo, resident_kb


def series(*values: float, failures: int = 0) -> Series:
    return Series(
        metric="x.y_ms",
        values=values,
        unit="ms",
        lifecycle=Lifecycle.HOT,
        isolation="none",
        workload="nothing",
        failures=failures,
    )


@pytest.mark.parametrize(
    ("values", "rank", "expected"),
    [
        ([5.0], 95, 5.0),
        ([1.0, 2.0], 50, 1.0),
        ([3.0, 1.0, 2.0], 50, 2.0),
        (list(range(1, 101)), 95, 95),
        (list(range(1, 101)), 50, 50),
        (list(range(1, 21)), 99, 20),
        ([1.0, 2.0], 0, 1.0),
    ],
)
def test_a_percentile_is_a_sample_of_nearest_rank(values: list[float], rank: float, expected: float) -> None:
    assert percentile(values, rank) == expected


@pytest.mark.parametrize(
    ("count", "name"),
    [
        (0, "no_samples"),
        (1, "smoke_only"),
        (2, "smoke_only"),
        (4, "superfast_iteration"),
        (9, "fast_iteration"),
        (29, "baseline_checkpoint"),
        (99, "p50_p90_decision_grade"),
        (100, "p95_decision_grade"),
        (500, "p99_decision_grade"),
    ],
)
def test_evidence_grows_with_the_number_of_samples(count: int, name: str) -> None:
    assert tier(count) == name


def test_a_series_without_samples_claims_nothing() -> None:
    assert (series().p50, series().p95, series().tier) == (None, None, "no_samples")


def test_the_json_keeps_every_sample_with_tier_and_isolation() -> None:
    report = as_json(machine(), [series(3.0, 1.0, failures=2)], {"docker": "not installed"}, "e2b 0")
    (only,) = json.loads(json.dumps(report))["series"]
    assert only["samples"] == [3.0, 1.0]
    assert (only["tier"], only["isolation"], only["failures"], only["n"]) == ("smoke_only", "none", 2, 2)


def test_the_text_shows_tier_isolation_and_absent_peers(capsys: pytest.CaptureFixture[str]) -> None:
    show(machine(), [series(3.0, 1.0)], {"docker": "not installed"}, "e2b 0")
    text = capsys.readouterr().out
    for expected in ("smoke_only", "isolation: none", "peer docker: not measured: not installed", "x.y_ms"):
        assert expected in text


def test_only_growth_counts_as_left_behind() -> None:
    assert difference({"mounts": 3, "files": 5}, {"mounts": 4, "files": 4, "new": 1}) == {"mounts": 1, "new": 1}


def test_a_new_file_in_the_state_folder_is_noticed(tmp_path: Path) -> None:
    before = count_leftovers(os.getpid(), tmp_path)
    (tmp_path / "forgotten").write_text("")
    after = count_leftovers(os.getpid(), tmp_path)
    assert difference(before, after)["files in the state folder"] == 1


def test_the_machine_is_named_with_every_report() -> None:
    assert {"cpu", "cores", "memory_mb", "kernel"} <= machine().keys()
    assert meminfo("MemTotal") > 0
    assert resident_kb(os.getpid()) > 0


def test_simulated_isolation_is_never_called_isolation() -> None:
    assert isolation_of("memory").startswith("none")


def test_a_peers_root_has_the_programs_and_their_libraries(tmp_path: Path) -> None:
    make_root(tmp_path / "root")
    write_bundle(tmp_path / "bundle", tmp_path / "root", ["/bin/echo"])
    assert {"sh", "echo", "sleep"} <= {path.name for path in (tmp_path / "root/bin").iterdir()}
    assert list((tmp_path / "root").rglob("libc.so*"))
    assert json.loads((tmp_path / "bundle/config.json").read_text())["process"]["args"] == ["/bin/echo"]
