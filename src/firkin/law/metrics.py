"""Figures, each with its unit and what it is about."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from firkin.law.ids import SandboxId


class MetricUnit(StrEnum):
    COUNT = "count"
    BYTES = "bytes"
    MILLISECONDS = "milliseconds"
    PERCENT = "percent"
    RATIO = "ratio"
    TEXT = "text"


class MetricScope(StrEnum):
    RUNTIME = "runtime"
    SANDBOX = "sandbox"
    GUEST = "guest"


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    name: str
    value: int | float | str
    unit: MetricUnit
    scope: MetricScope
    observed_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricFilter:
    prefix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxUsage:
    """One sample of a sandbox's use. `cpu_used_pct` is of one CPU: 200 means two busy CPUs."""

    sandbox_id: SandboxId
    observed_at: datetime
    cpu_count: int
    cpu_used_pct: float
    memory_used_bytes: int
    memory_cache_bytes: int
    memory_total_bytes: int
    disk_used_bytes: int
    disk_total_bytes: int
