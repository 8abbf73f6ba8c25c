"""Samples and what may be claimed from them. Percentiles are nearest rank; a claim needs enough samples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Lifecycle(StrEnum):
    """What stood ready before the clock started. Series of different lifecycles are never averaged together."""

    COLD_UNPREPARED = "cold_unprepared"
    COLD_PREPARED = "cold_prepared"
    WARM = "warm"
    HOT = "hot"
    RESUMED = "resumed"
    RESOURCES = "resources"
    CLEANUP = "cleanup"


P95_CLAIM = 100  # samples that a claim of this kind needs, at least
P50_CLAIM = 30

_TIERS = (
    (500, "p99_decision_grade"),
    (P95_CLAIM, "p95_decision_grade"),
    (P50_CLAIM, "p50_p90_decision_grade"),
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
class Target:
    """What Firkin wants to reach: at most so much, or `at_least`. None sets no bound."""

    p50: float | None = None
    p95: float | None = None
    at_least: bool = False

    def __str__(self) -> str:
        sign = "≥" if self.at_least else "≤"
        bounds = (("p50", self.p50), ("p95", self.p95))
        return ", ".join(f"{name} {sign} {bound:g}" for name, bound in bounds if bound is not None)

    def misses(self, values: Sequence[float]) -> bool:
        found = ((50, self.p50), (95, self.p95))
        return any(self._beyond(percentile(values, rank), bound) for rank, bound in found if bound is not None)

    def _beyond(self, value: float, bound: float) -> bool:
        return value < bound if self.at_least else value > bound


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One metric's raw samples, in the order in which they were taken.

    `isolation` is what stood between the command and the host, and `system` whose
    tier that is: ``namespaces``, ``microvm`` or a peer's name. `events` are the two that the clock ran between.
    A series of a sweep has its `axis` and `level`; one of a breakdown, the `part` it is of.
    `failures` count attempts that gave no sample; they are never dropped silently.
    """

    metric: str
    values: tuple[float, ...]
    unit: str
    lifecycle: Lifecycle
    isolation: str
    workload: str
    system: str = ""
    events: str = ""
    target: Target | None = None
    failures: int = 0
    note: str = ""
    axis: str = ""
    level: int = 0
    part: str = ""

    @property
    def key(self) -> tuple[str, ...]:
        """What is the same measurement in another run."""
        return (self.metric, self.system, self.lifecycle.value, self.axis, str(self.level), self.part)

    @property
    def name(self) -> str:
        where = f" at {self.level} {self.axis}" if self.axis else ""
        return f"{self.metric}{f' {self.part}' if self.part else ''}{where}"

    @property
    def more_is_better(self) -> bool:
        return self.unit.endswith("/s") or (self.target is not None and self.target.at_least)

    def rank(self, percent: float) -> float | None:
        return percentile(self.values, percent) if self.values else None

    @property
    def p50(self) -> float | None:
        return self.rank(50)

    @property
    def p95(self) -> float | None:
        return self.rank(95)

    @property
    def tier(self) -> str:
        return tier(len(self.values))

    @property
    def verdict(self) -> str:
        """Of its target: missed, met, or met by too few samples to claim it."""
        if self.target is None:
            return ""
        if not self.values or self.failures or self.target.misses(self.values):
            return "missed"
        needed = P95_CLAIM if self.target.p95 is not None else P50_CLAIM
        return "met" if len(self.values) >= needed else "met, few samples"

    def as_json(self) -> dict[str, Any]:
        return {
            "metric": self.metric,
            "system": self.system,
            "axis": self.axis,
            "level": self.level,
            "part": self.part,
            "unit": self.unit,
            "n": len(self.values),
            "failures": self.failures,
            "p50": self.p50,
            "p95": self.p95,
            "p99": self.rank(99),
            "min": min(self.values, default=None),
            "max": max(self.values, default=None),
            "tier": self.tier,
            "lifecycle": self.lifecycle.value,
            "isolation": self.isolation,
            "events": self.events,
            "workload": self.workload,
            "target": None if self.target is None else _target_json(self.target),
            "verdict": self.verdict,
            "note": self.note,
            "samples": list(self.values),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Series:
        """Figures are made from the samples again. Raises `KeyError`, `TypeError` and `ValueError` for other JSON."""
        target = data.get("target") or None
        return cls(
            metric=str(data["metric"]),
            values=tuple(float(value) for value in data["samples"]),
            unit=str(data["unit"]),
            lifecycle=Lifecycle(data["lifecycle"]),
            isolation=str(data["isolation"]),
            workload=str(data["workload"]),
            system=str(data.get("system", "")),
            events=str(data.get("events", "")),
            target=Target(p50=target["p50"], p95=target["p95"], at_least=target["at_least"])
            if isinstance(target, dict)
            else None,
            failures=int(data["failures"]),
            note=str(data["note"]),
            axis=str(data.get("axis", "")),
            level=int(data.get("level", 0)),
            part=str(data.get("part", "")),
        )


def _target_json(target: Target) -> dict[str, Any]:
    return {"p50": target.p50, "p95": target.p95, "at_least": target.at_least, "text": str(target)}
