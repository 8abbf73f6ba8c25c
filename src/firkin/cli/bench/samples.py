"""Samples and what may be claimed from them. Percentiles are nearest rank; a claim needs enough samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Lifecycle(StrEnum):
    """What stood ready before the clock started. Series of different lifecycles are never averaged together."""

    COLD_PREPARED = "cold_prepared"
    HOT = "hot"
    RESUMED = "resumed"
    RESOURCES = "resources"
    CLEANUP = "cleanup"


_TIERS = (
    (500, "p99_decision_grade"),
    (100, "p95_decision_grade"),
    (30, "p50_p90_decision_grade"),
    (10, "baseline_checkpoint"),
    (5, "fast_iteration"),
    (3, "superfast_iteration"),
    (1, "smoke_only"),
)


def tier(count: int) -> str:
    """How much `count` samples can prove."""
    return next((name for least, name in _TIERS if count >= least), "no_samples")


def percentile(values: Sequence[float], rank: float) -> float:
    """Nearest rank: the smallest sample that at least `rank` per cent of all do not exceed. Needs a sample."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(rank / 100 * len(ordered)) - 1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One metric's raw samples, in the order in which they were taken.

    `isolation` is what stood between the command and the host. `target` is the
    figure that Firkin wants to reach, for people to compare with. `failures`
    count attempts that gave no sample; they are never dropped silently.
    """

    metric: str
    values: tuple[float, ...]
    unit: str
    lifecycle: Lifecycle
    isolation: str
    workload: str
    target: str = ""
    failures: int = 0
    note: str = ""

    @property
    def p50(self) -> float | None:
        return percentile(self.values, 50) if self.values else None

    @property
    def p95(self) -> float | None:
        return percentile(self.values, 95) if self.values else None

    @property
    def tier(self) -> str:
        return tier(len(self.values))

    def as_json(self) -> dict[str, Any]:
        return {
            "metric": self.metric,
            "unit": self.unit,
            "n": len(self.values),
            "failures": self.failures,
            "p50": self.p50,
            "p95": self.p95,
            "min": min(self.values, default=None),
            "max": max(self.values, default=None),
            "tier": self.tier,
            "lifecycle": self.lifecycle.value,
            "isolation": self.isolation,
            "workload": self.workload,
            "target": self.target,
            "note": self.note,
            "samples": list(self.values),
        }
