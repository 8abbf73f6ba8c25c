"""Where the time of a create and of a command goes, as the server's own marks tell it to who asks (``X-Firkin-Trace``).

A phase that took part in some requests only (a pool's, say) is a series with fewer samples.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from firkin.cli.bench.raw_http import Answer, Inside, RawConnection, call_request, made, start_request
from firkin.cli.bench.samples import Lifecycle, Series
from firkin.cli.bench.stage import Stage
from firkin.cli.failures import CommandFailure
from firkin.e2b.traces import TRACE_HEADER

_WITHIN_S = 5.0
_OUTSIDE = ("request read", "answer")  # HTTP's, not the engine's
_WARM_UP = 3


def breakdown(stage: Stage) -> Iterator[Series]:
    creates, commands = [], []
    with RawConnection(stage) as connection:
        for _ in range(stage.amounts.n + _WARM_UP):
            inside, create = traced_create(stage, connection)
            try:
                creates.append(create)
                asked = {TRACE_HEADER: uuid.uuid4().hex}
                answer = connection.ask(start_request(stage, inside, headers=asked))
                commands.append(_read(stage, connection, asked, answer))
            finally:
                connection.kill(inside)
    del creates[:_WARM_UP], commands[:_WARM_UP]
    yield _engine(stage, creates)
    yield from phases(stage, "phase.create_ms", creates, Lifecycle.COLD_PREPARED)
    yield from phases(stage, "phase.exec_ms", commands, Lifecycle.HOT)


def traced_create(stage: Stage, connection: RawConnection) -> tuple[Inside, dict[str, float]]:
    """A sandbox, and what of its create took how long."""
    asked = {TRACE_HEADER: uuid.uuid4().hex}
    answer = connection.ask(call_request(stage, "POST", "/sandboxes", stage.new_sandbox, asked))
    return made(answer), _read(stage, connection, asked, answer)


def _read(stage: Stage, connection: RawConnection, asked: Mapping[str, str], answer: Answer) -> dict[str, float]:
    """Milliseconds by phase; a helper's own steps as ``phase/step``; at last what the client saw beyond."""
    request = call_request(stage, "GET", f"/firkin/v1/traces/{asked[TRACE_HEADER]}")
    until = time.monotonic() + _WITHIN_S
    while not (found := connection.ask(request).json())["complete"]:
        if time.monotonic() > until:
            raise CommandFailure("the server did not finish a trace")
    return {**flat(found["phases"]), "client and connection": max(0.0, answer.ended_ms - found["totalMs"])}


def flat(phases: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Phases of one name are one."""
    found: dict[str, float] = {}
    for phase in phases:
        found[phase["name"]] = found.get(phase["name"], 0.0) + phase["ms"]
        for step in phase.get("inside", ()):
            name = f"{phase['name']}/{step['name']}"
            found[name] = found.get(name, 0.0) + step["ms"]
    return found


def _engine(stage: Stage, creates: Sequence[Mapping[str, float]]) -> Series:
    values = [
        sum(ms for name, ms in create.items() if "/" not in name and name not in (*_OUTSIDE, "client and connection"))
        for create in creates
    ]
    what = "the engine's part of POST /sandboxes: admitted, recorded, booted, its agent reached, recorded again"
    events = "RequestStart → ReadyProbePassed"
    return stage.series("start.cold_to_ready_ms", values, Lifecycle.COLD_PREPARED, what, events=events)


def phases(
    stage: Stage, metric: str, requests: Sequence[Mapping[str, float]], lifecycle: Lifecycle
) -> Iterator[Series]:
    """A series of each phase."""
    what = "one phase of the server's work, as it marks it; a name with a slash is a step of the launched process"
    names = dict.fromkeys(name for request in requests for name in request)
    for name in names:
        values = [request[name] for request in requests if name in request]
        yield stage.series(metric, values, lifecycle, what, part=name)
