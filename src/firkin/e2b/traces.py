"""Traces of requests whose clients asked for one: a header with an id of the client's choice, read back by it.

The id is the right to read: it is long, and nobody lists ids. What is kept are
names of phases and durations, of the last `KEPT` requests that asked.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

from firkin.e2b.exchange import Exchange, Refused
from firkin.phases import Phase, Trace, tracing

TRACE_HEADER = "X-Firkin-Trace"
HEADER = TRACE_HEADER.lower().encode()
KEPT = 256
_NOT_LET_IN = 401
_Request: TypeAlias = tuple[str, Trace]
_ID = re.compile(rb"[A-Za-z0-9-]{16,64}")


class Traces:
    """The last ones, in memory alone."""

    def __init__(self) -> None:
        self._under_way: dict[str, _Request] = {}
        self._kept: OrderedDict[str, _Request] = OrderedDict()

    @contextmanager
    def following(self, wanted: bytes, exchange: Exchange) -> Iterator[None]:
        """A trace around the block, kept under the id `wanted`. `Refused` for an id that could be guessed.

        Of who is not let in nothing is kept: they would push out those of others.
        """
        if _ID.fullmatch(wanted) is None:
            raise Refused(400, f"{TRACE_HEADER} must have 16 to 64 letters, digits and '-'", should_retry=False)
        trace_id, trace, let_in = wanted.decode(), Trace(), True
        request = self._under_way[trace_id] = (f"{exchange.method} {exchange.path[:128]}", trace)
        try:
            with tracing(trace):
                yield
        except Refused as refusal:
            let_in = refusal.status != _NOT_LET_IN
            raise
        finally:
            self._under_way.pop(trace_id, None)
            if let_in:
                self._keep(trace_id, request)

    def _keep(self, trace_id: str, request: _Request) -> None:
        self._kept[trace_id] = request
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)

    def read(self, trace_id: str) -> dict[str, Any]:
        """Durations in milliseconds. While `complete` is false there may be more to come. `Refused` when unknown."""
        found = self._under_way.get(trace_id) or self._kept.get(trace_id)
        if found is None:
            raise Refused(404, f"no trace of that id is kept; the last {KEPT} are", should_retry=False)
        request, trace = found
        return {
            "request": request,
            "complete": trace.ended,
            "totalMs": round(trace.seconds * 1000, 4),
            "phases": [_json(phase) for phase in trace.phases],
        }


def _json(phase: Phase) -> dict[str, Any]:
    shown: dict[str, Any] = {"name": phase.name, "ms": round(phase.seconds * 1000, 4)}
    return shown | ({"inside": [_json(each) for each in phase.inside]} if phase.inside else {})
