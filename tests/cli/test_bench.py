"""The benchmark's arithmetic, its notion of evidence, and what it counts as left behind."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from firkin.cli.bench.bundle import make_root, write_bundle
from firkin.cli.bench.leftovers import count_leftovers, difference
from firkin.cli.bench.machine import describe, machine, meminfo, processor_s, resident_kb, unused_kb
from firkin.cli.bench.peer_programs import last_words
from firkin.cli.bench.raw_http import Answer
from firkin.cli.bench.report import read_report, show, to_json
from firkin.cli.bench.samples import Target, percentile, tier
from firkin.cli.bench.scaling import breakpoint_of, levels
from firkin.cli.bench.stage import isolation_of, system_of
from firkin.cli.failures import CommandFailure

from .bench_reports import report, series


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
    found = json.loads(to_json(report(series(3.0, 1.0, failures=2))))
    (only,) = found["series"]
    assert only["samples"] == [3.0, 1.0]
    assert (only["tier"], only["isolation"], only["failures"], only["n"]) == ("smoke_only", "none", 2, 2)
    assert found["absent"] == {"peer docker": "not installed"}


def test_what_was_written_is_read_again_as_it_was(tmp_path: Path) -> None:
    wanted = [
        series(3.0, 1.0, failures=2, note="n", events="A → B", target=Target(p50=2, p95=3)),
        series(1.0, axis="alive", level=100),
        series(1.0, part="boot/disk"),
        series(),
    ]
    path = tmp_path / "figures.json"
    path.write_text(to_json(report(*wanted)))
    assert list(read_report(path).series) == wanted


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"series": 1}', '{"machine": {}, "client": "", "series": [{}]}'])
def test_another_file_is_refused_with_what_to_do(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(CommandFailure, match="firkin bench --json"):
        read_report(path)


def test_the_text_shows_tier_isolation_and_what_is_absent(capsys: pytest.CaptureFixture[str]) -> None:
    show(report(series(3.0, 1.0)))
    text = capsys.readouterr().out
    for expected in ("smoke_only", "isolation: none", "peer docker: not measured: not installed", "x.y_ms"):
        assert expected in text


@pytest.mark.parametrize(
    ("values", "target", "failures", "verdict"),
    [
        ([1.0] * 100, Target(p50=1, p95=2), 0, "met"),
        ([1.0] * 99, Target(p50=1, p95=2), 0, "met, few samples"),
        ([1.0] * 30, Target(p50=1), 0, "met"),
        ([1.0] * 94 + [9.0] * 6, Target(p50=1, p95=2), 0, "missed"),
        ([1.0] * 100, Target(p50=1), 1, "missed"),
        ([], Target(p50=1), 0, "missed"),
        ([300.0], Target(p50=300, at_least=True), 0, "met, few samples"),
        ([299.0], Target(p50=300, at_least=True), 0, "missed"),
        ([1.0], None, 0, ""),
    ],
)
def test_a_target_is_met_only_by_enough_samples(
    values: list[float], target: Target | None, failures: int, verdict: str
) -> None:
    assert series(*values, target=target, failures=failures).verdict == verdict


def test_sweeps_phases_and_peers_are_told_from_figures() -> None:
    peer = series(1.0, metric="peer.run_ms")
    swept, phase, plain = series(1.0, axis="alive", level=1), series(1.0, part="boot"), series(1.0)
    found = report(peer, swept, phase, plain)
    assert (found.figures, found.peers, found.phases, found.sweeps) == ([plain], [peer], [phase], [swept])


@pytest.mark.parametrize(("most", "expected"), [(1, [1]), (5, [1, 2, 4, 5]), (8, [1, 2, 4, 8])])
def test_the_last_level_is_what_was_asked_for(most: int, expected: list[int]) -> None:
    assert levels((1, 2, 4, 8, 16), most) == expected


def test_a_breakpoint_is_the_last_level_before_the_first_that_is_too_slow() -> None:
    swept = [
        series(*values, axis="alive", level=level)
        for level, values in ((1, [10.0]), (2, [20.0]), (4, [21.0]), (8, [12.0]))
    ]
    assert breakpoint_of(swept) == 2


def test_an_answer_is_read_however_it_is_split() -> None:
    whole = b'HTTP/1.1 201 Created\r\nContent-Length: 8\r\nX: y\r\n\r\n{"a": 1}'
    for at in range(1, len(whole)):
        answer = Answer()
        assert not answer.feed(whole[:at])
        assert answer.feed(whole[at:])
        assert (answer.status, answer.json()) == (201, {"a": 1})


def test_an_answer_in_chunks_tells_when_its_output_came() -> None:
    answer = Answer()
    assert not answer.feed(b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1f\r\n{"event":{"start":{"pid":1}}}')
    assert answer.started_ms
    assert not answer.first_ms
    assert not answer.feed(b'\r\n20\r\n{"event":{"data":{"stdout":"aGk="}}}\r\n')
    assert answer.feed(b"0\r\n\r\n")
    assert 0 < answer.started_ms <= answer.first_ms <= answer.ended_ms


def test_an_answer_without_a_body_is_complete_with_its_head() -> None:
    answer = Answer()
    assert answer.feed(b"HTTP/1.1 204 No Content\r\nServer: x\r\n\r\n")
    assert answer.json() is None


def test_a_refusal_is_told_in_the_servers_words() -> None:
    answer = Answer()
    answer.feed(b'HTTP/1.1 503 X\r\nContent-Length: 16\r\n\r\n{"message":"no"}')
    with pytest.raises(CommandFailure, match="answered 503: no"):
        answer.json()
    with pytest.raises(CommandFailure, match="closed the connection"):
        Answer().feed(b"")


def test_a_silent_peers_last_line_is_its_reason() -> None:
    assert last_words(b"a\nb\n") == "b"
    assert last_words(b"") == "it ended without a word"


def test_only_growth_counts_as_left_behind() -> None:
    assert difference({"mounts": 3, "files": 5}, {"mounts": 4, "files": 4, "new": 1}) == {"mounts": 1, "new": 1}


def test_a_new_file_in_the_state_folder_is_noticed(tmp_path: Path) -> None:
    before = count_leftovers(os.getpid(), tmp_path)
    (tmp_path / "forgotten").write_text("")
    after = count_leftovers(os.getpid(), tmp_path)
    assert difference(before, after)["files in the state folder"] == 1


def test_the_machine_is_described_without_its_name() -> None:
    found = machine()
    assert f"with {found['cores']} cores" in describe(found)
    assert os.uname().nodename not in describe(found)


def test_what_a_process_used_is_known_while_it_lives() -> None:
    assert processor_s(os.getpid()) > 0
    assert processor_s(None) == 0


def test_the_machine_is_named_with_every_report() -> None:
    assert {"cpu", "cores", "memory_mb", "kernel"} <= machine().keys()
    assert meminfo("MemTotal") > unused_kb() >= meminfo("MemAvailable") // 2 > 0
    assert resident_kb(os.getpid()) > 0


def test_simulated_isolation_is_never_called_isolation() -> None:
    assert isolation_of("memory").startswith("none")
    assert (system_of("qemu"), system_of("namespaces")) == ("microvm", "namespaces")


def test_a_peers_root_has_the_programs_and_their_libraries(tmp_path: Path) -> None:
    make_root(tmp_path / "root")
    write_bundle(tmp_path / "bundle", tmp_path / "root", ["/bin/echo"])
    assert {"sh", "echo", "sleep"} <= {path.name for path in (tmp_path / "root/bin").iterdir()}
    assert list((tmp_path / "root").rglob("libc.so*"))
    assert json.loads((tmp_path / "bundle/config.json").read_text())["process"]["args"] == ["/bin/echo"]
