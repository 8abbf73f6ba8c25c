"""One finding of ``firkin doctor``: what was looked at, whether it will do, why it matters, what mends it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Status(StrEnum):
    OK = "ok"
    DEGRADED = "degraded"
    MISSING = "missing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """`why` says what depends on it; `mend` is a command or a sentence, empty when all is well.

    `needed`: without it the default driver cannot work at all.
    """

    name: str
    status: Status
    detail: str
    why: str
    mend: str = ""
    needed: bool = False

    def as_json(self) -> dict[str, Any]:
        return {key: str(value) if isinstance(value, Status) else value for key, value in asdict(self).items()}


def found(name: str, good: bool, detail: str, *, why: str, mend: str, needed: bool = False) -> Finding:
    """OK, or else MISSING when it is needed and DEGRADED when it is not."""
    bad = Status.MISSING if needed else Status.DEGRADED
    return Finding(
        name=name,
        status=Status.OK if good else bad,
        detail=detail,
        why=why,
        mend="" if good else mend,
        needed=needed,
    )
