"""Counts of what the engine has done since it started."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from firkin.law.states import EndCause


@dataclass(slots=True, eq=False)
class Figures:
    """`create_ms` is the time of the last create that succeeded."""

    created: int = 0
    create_failed: int = 0
    refused: int = 0
    create_ms: float = 0.0
    ended: Counter[EndCause] = field(default_factory=Counter)
