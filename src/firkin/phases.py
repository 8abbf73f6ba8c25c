"""Where the time of one request goes, for a client that asked.

Whoever serves a request marks the end of each phase with `mark`. Without a
`Trace` around it, which is nearly always, a mark reads one context variable and
does nothing else. Tasks that a traced request starts are in the same trace: their
marks stand in the order of time, and each phase lasts since the mark before it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import pairwise

MOST_PHASES = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """`inside` are the phases of a helper, as it told them itself; they may leave a rest."""

    name: str
    seconds: float
    inside: tuple[Phase, ...] = ()


class Trace:
    """The phases of one request. Bounded: marks beyond `MOST_PHASES` are dropped."""

    __slots__ = ("_before", "_began", "_inside", "_phases", "ended")

    def __init__(self) -> None:
        self._began = self._before = time.perf_counter()
        self._phases: list[Phase] = []
        self._inside: tuple[Phase, ...] = ()
        self.ended = False

    @property
    def phases(self) -> Sequence[Phase]:
        return tuple(self._phases)

    @property
    def seconds(self) -> float:
        """From the beginning to the last mark."""
        return self._before - self._began

    def mark(self, name: str) -> None:
        now = time.perf_counter()
        if len(self._phases) < MOST_PHASES:
            self._phases.append(Phase(name=name, seconds=now - self._before, inside=self._inside))
        self._before, self._inside = now, ()

    def told(self, instants: Sequence[tuple[str, int]]) -> None:
        """What a helper did in the phase that is going on: each step's name and beginning, in ns; the last ends it."""
        self._inside = tuple(
            Phase(name=name, seconds=(after - at) / 1e9) for (name, at), (_, after) in pairwise(instants)
        )


_TRACE: ContextVar[Trace | None] = ContextVar("firkin_trace", default=None)


def mark(name: str) -> None:
    """The phase `name` of the request that is being served ends here."""
    trace = _TRACE.get()
    if trace is not None:
        trace.mark(name)


def current() -> Trace | None:
    """The trace of the request that is being served, if it has one."""
    return _TRACE.get()


@contextmanager
def tracing(trace: Trace) -> Iterator[None]:
    """Marks within the block belong to `trace`."""
    token = _TRACE.set(trace)
    try:
        yield
    finally:
        trace.ended = True
        _TRACE.reset(token)
