"""Traces of requests whose clients asked for one: a header with an id of the client's choice, read back by it.

The id is the right to read: it is long, and nobody lists ids. What is kept are
names of phases and durations, of the last `KEPT` requests that asked.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from firkin.e2b.exchange import Exchange, Refused
from firkin.phases import Phase, Trace, tracing

TRACE_HEADER = "X-Firkin-Trace"
HEADER = TRACE_HEADER.lower().encode()
KEPT = 256
_ID = re.compile(rb"[A-Za-z0-9-]{16,64}")


class Traces:
    """The last ones, in memory alone."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, tuple[str, Trace]] = OrderedDict()

    @contextmanager
    def following(self, wanted: bytes, exchange: Exchange) -> Iterator[None]:
        """A trace around the block, kept under the id `wanted`. `Refused` for an id that could be guessed."""
        if _ID.fullmatch(wanted) is None:
            raise Refused(400, f"{TRACE_HEADER} must have 16 to 64 letters, digits and '-'", should_retry=False)
        trace = Trace()
        self._kept[wanted.decode()] = (f"{exchange.method} {exchange.path[:128]}", trace)
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        with tracing(trace):
            yield

    def read(self, trace_id: str) -> dict[str, Any]:
        """Durations in milliseconds. While `complete` is false there may be more to come. `Refused` when unknown."""
        if trace_id not in self._kept:
            raise Refused(404, f"no trace of that id is kept; the last {KEPT} are", should_retry=False)
        request, trace = self._kept[trace_id]
        return {
            "request": request,
            "complete": trace.ended,
            "totalMs": round(trace.seconds * 1000, 4),
            "phases": [_json(phase) for phase in trace.phases],
        }


def _json(phase: Phase) -> dict[str, Any]:
    shown: dict[str, Any] = {"name": phase.name, "ms": round(phase.seconds * 1000, 4)}
    return shown | ({"inside": [_json(each) for each in phase.inside]} if phase.inside else {})
