"""What becomes of a wish that finds no room: one decision, made of numbers alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

from firkin.law.errors import CapacityRejected, RejectReason
from firkin.law.pressure import AdmitNow, Backpressure, BackpressurePolicy, Queue, Reject

LONGEST_RETRY_S = 60.0
SPARE_WAIT_S = 5.0
_FLOORS = ("free memory on the host", "free disk on the host")


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """What a newcomer finds. `pressed` is the planner's word that nothing new may begin.

    `spare` entries would go to make room; who waits for that may wait even where no queue is allowed.
    """

    now_s: float
    waiting: int
    spare: int = 0
    pressed: bool = False
    closed: bool = False


def answer(short: CapacityRejected | None, line: Line, policy: BackpressurePolicy) -> Backpressure:
    """What to say to a newcomer for whom `short` is missing; None when nothing is."""
    if line.closed:
        return Reject(reason=RejectReason.SHUTTING_DOWN)
    if short is None:
        return AdmitNow()
    if is_oversized(short):
        return Reject(reason=RejectReason.OVERSIZED)
    if line.pressed and short.short in _FLOORS:
        return Reject(reason=RejectReason.PRESSURE)
    wait_s, room = policy.max_wait_s, policy.max_pending
    if line.spare > line.waiting:
        wait_s, room = max(wait_s, SPARE_WAIT_S), max(room, line.spare)
    if wait_s <= 0 or room == 0 or short.limit == 0:
        return Reject(reason=RejectReason.NO_ROOM)
    if line.waiting >= room:
        return Reject(reason=RejectReason.QUEUE_FULL)
    return Queue(position=line.waiting + 1, deadline_s=line.now_s + wait_s)


def is_oversized(short: CapacityRejected) -> bool:
    """Whether it would find no room even on an empty machine. A limit of 0 is a closed door, not a small room."""
    return short.short not in _FLOORS and short.limit is not None and 0 < short.limit < short.requested


def retry_after_s(position: int, pace_s: float | None, longest_wait_s: float) -> float:
    """When to come again: once those before have been served, at the pace at which room came free lately."""
    expected = longest_wait_s if pace_s is None else pace_s * max(1, position)
    return float(min(LONGEST_RETRY_S, max(1, math.ceil(expected))))
