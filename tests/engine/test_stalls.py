"""What the kernel tells of waiting, and what is guessed where it does not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from firkin.engine.stalls import StallGauge


def _write(proc: Path, **files: str) -> None:
    (proc / "pressure").mkdir(exist_ok=True)
    for name, text in files.items():
        (proc / name.replace("__", "/")).write_text(text)


def test_what_the_kernel_tells_is_taken(tmp_path: Path) -> None:
    line = "some avg10={} avg60=1.00 avg300=0.50 total=123\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"
    _write(tmp_path, pressure__cpu=line.format("12.50"), pressure__io=line.format("3.25"))
    gauge = StallGauge(tmp_path)
    assert (gauge.tells_all, gauge.cpu_pct(), gauge.io_pct()) == (True, 12.5, 3.25)


def test_a_kernel_without_it_is_guessed_about_from_load_and_idle_time(tmp_path: Path) -> None:
    cpus = os.cpu_count() or 1
    _write(tmp_path, stat="cpu 0 0 0 1000 0 0 0 0 0 0\n", loadavg=f"{4 * cpus}.0 1 1 1/1 1\n")
    gauge = StallGauge(tmp_path)
    assert (gauge.tells_all, gauge.io_pct()) == (False, None)
    gauge.cpu_pct()
    _write(tmp_path, stat="cpu 100 0 0 1000 0 0 0 0 0 0\n")
    assert gauge.cpu_pct() == pytest.approx(75.0)
    _write(tmp_path, stat="cpu 100 0 0 2000 0 0 0 0 0 0\n")
    assert gauge.cpu_pct() == pytest.approx(0.0)


@pytest.mark.parametrize("text", ["", "nothing", "some avg60=1"])
def test_what_cannot_be_read_is_unknown_and_no_error(tmp_path: Path, text: str) -> None:
    _write(tmp_path, pressure__cpu=text, pressure__io=text, stat=text, loadavg=text)
    gauge = StallGauge(tmp_path)
    assert (gauge.cpu_pct(), gauge.io_pct()) == (None, None)
