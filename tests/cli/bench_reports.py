"""Small runs of the benchmark, made up."""

from __future__ import annotations

from typing import Any

from firkin.cli.bench.report import Report
from firkin.cli.bench.samples import Lifecycle, Series

MACHINE = {"cpu": "Some <CPU> & Co", "cores": 2, "memory_mb": 24_000, "kernel": "6.18", "virtual": True, "load": 0.5}


def series(*values: float, **fields: Any) -> Series:
    given = {
        "metric": "x.y_ms",
        "unit": "ms",
        "lifecycle": Lifecycle.HOT,
        "isolation": "none",
        "workload": "nothing",
        "system": "namespaces",
        **fields,
    }
    return Series(values=values, **given)


def report(*found: Series, machine: dict[str, Any] | None = None) -> Report:
    return Report(
        machine=machine or MACHINE, client="e2b 0", series=found, absent={"peer docker": "not installed"}, version="0"
    )
