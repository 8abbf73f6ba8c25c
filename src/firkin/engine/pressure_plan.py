"""What a node should do about its load: a function of numbers, without a clock, a file or a memory of its own.

It shrinks in one order and grows in the other: stop refilling, give up what is
spare, trim idle disks, refuse. What somebody has is in none of its actions.
Two things keep it from flapping: a level is left a margin above where it was
entered, and only after calm has held for a while; and it refills no more than
leaves the watch threshold free, so that it never presses itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import IntEnum

from firkin.law.pressure import (
    AutoscaleAction,
    AutoscaleDecision,
    AutoscalePlan,
    DemandSnapshot,
    PressurePolicy,
    PressureReason,
    PressureSnapshot,
    PressureState,
    ReadyQueueTarget,
    ReserveFloorPolicy,
    SupplySnapshot,
)

WATCH_FACTOR = 1.25
LEAVE_FACTOR = 1.10
MOST_RELAPSES = 5
RELAPSE_FORGOTTEN = 10  # holds of calm after which it counts no more
RECOVERY_STEPS = 2

_D = AutoscaleDecision
_PRESSED = (PressureState.SHRINK, PressureState.CRITICAL)
_WHY_KEPT = (PressureState.WATCH, *_PRESSED)  # what began a state is its reason until calm is believed


class Level(IntEnum):
    """How bad it is at this very moment, without a memory of how it was."""

    CALM = 0
    TIGHT = 1
    SHORT = 2
    BELOW = 3


_STATE_LEVEL = {
    PressureState.NOMINAL: Level.CALM,
    PressureState.RECOVERY: Level.CALM,
    PressureState.WATCH: Level.TIGHT,
    PressureState.SHRINK: Level.SHORT,
    PressureState.CRITICAL: Level.BELOW,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """What the planner remembers from one plan to the next. Times are of the snapshots; None is never."""

    state: PressureState = PressureState.NOMINAL
    since_s: float = 0.0
    calm_since_s: float | None = None
    refilled_at_s: float | None = None
    eased_at_s: float | None = None
    relapses: int = 0
    refuses: bool = False
    reasons: frozenset[PressureReason] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Everything that a plan is made of."""

    demand: DemandSnapshot
    supply: SupplySnapshot
    pressure: PressureSnapshot
    floors: ReserveFloorPolicy
    policy: PressurePolicy


def plan(scene: Scene, past: Past) -> tuple[AutoscalePlan, Past]:
    """What to do now, and what to remember for the next time."""
    reasons = dict(_reasons(scene, past))
    level = max(reasons.values(), default=Level.CALM)
    now = _moved(scene, past, level)
    now = replace(now, reasons=frozenset(reasons) or (past.reasons if now.state in _WHY_KEPT else frozenset()))
    target = ReadyQueueTarget(wanted=scene.supply.wanted, affordable=affordable(scene))
    refuses = now.state is PressureState.CRITICAL and level is Level.BELOW and not scene.supply.ready
    actions = (*_shrinking(scene, now, refuses=refuses), *_growing(scene, now, target, refuses=refuses))
    if any(action.decision is _D.REFILL_HOT for action in actions):
        now = replace(now, refilled_at_s=scene.pressure.at_s)
    made = AutoscalePlan(state=now.state, reasons=now.reasons, target=target, actions=actions, refuses=refuses)
    return made, replace(now, refuses=refuses)


def affordable(scene: Scene) -> int:
    """How many entries the machine can keep ready without coming near its refill floors, or its limits."""
    supply, pressure = scene.supply, scene.pressure
    memory, disk = refill_floors(scene)
    most = [
        _fit(supply.ready, pressure.memory_bytes - WATCH_FACTOR * memory, supply.entry_memory_bytes),
        _fit(supply.ready, pressure.disk_bytes - WATCH_FACTOR * disk, supply.entry_disk_bytes),
    ]
    if supply.room is not None:
        most.append(supply.room)
    return max(0, min(most))


def refill_floors(scene: Scene) -> tuple[int, int]:
    """Of memory and of disk."""
    floors, pressure = scene.floors, scene.pressure
    return floors.refill_memory(pressure.memory_total_bytes), floors.refill_disk(pressure.disk_total_bytes)


def _fit(ready: int, spare_bytes: float, entry_bytes: int) -> int:
    return ready + math.floor(spare_bytes / max(1, entry_bytes))


def _reasons(scene: Scene, past: Past) -> Iterator[tuple[PressureReason, Level]]:
    pressure, supply, demand, policy = scene.pressure, scene.supply, scene.demand, scene.policy
    memory, disk = refill_floors(scene)
    levels = (
        (PressureReason.MEMORY_FLOOR, _of_floor(pressure.memory_bytes, scene.floors.memory_bytes, memory, past)),
        (PressureReason.DISK_FLOOR, _of_floor(pressure.disk_bytes, scene.floors.disk_bytes, disk, past)),
        (PressureReason.CPU_PRESSURE, _of_stall(pressure.cpu_stall_pct, policy.cpu_stall_pct, past)),
        (PressureReason.IO_PRESSURE, _of_stall(pressure.io_stall_pct, policy.io_stall_pct, past)),
        (PressureReason.DEMAND_SPIKE, Level.TIGHT if demand.waiting or demand.launches_waiting else Level.CALM),
        (PressureReason.MANUAL_LIMIT, Level.SHORT if _over(supply) > 0 else Level.CALM),
    )
    return ((reason, level) for reason, level in levels if level > Level.CALM)


def _of_floor(free: int, floor: int, refill: int, past: Past) -> Level:
    """A level once entered is left only with a margin above the threshold at which it began."""
    known = _STATE_LEVEL[past.state]
    for level, threshold in (
        (Level.BELOW, float(floor)),
        (Level.SHORT, float(refill)),
        (Level.TIGHT, WATCH_FACTOR * refill),
    ):
        if free < threshold * (LEAVE_FACTOR if known >= level else 1.0):
            return level
    return Level.CALM


def _of_stall(stall_pct: float | None, most_pct: float, past: Past) -> Level:
    """Entries that wait take no CPU, so to give them up would help nobody: it is only no time to make more."""
    if stall_pct is None:
        return Level.CALM
    threshold = most_pct / LEAVE_FACTOR if _STATE_LEVEL[past.state] >= Level.TIGHT else most_pct
    return Level.TIGHT if stall_pct >= threshold else Level.CALM


def _over(supply: SupplySnapshot) -> int:
    """How many entries more there are than the limits leave room for."""
    return 0 if supply.room is None else max(0, supply.ready - max(0, supply.room))


def _moved(scene: Scene, past: Past, level: Level) -> Past:
    """Worse is believed at once, better only after it has held."""
    now, known = scene.pressure.at_s, _STATE_LEVEL[past.state]
    if level > known and (level >= Level.SHORT or past.state is PressureState.NOMINAL):
        return _worse(scene, past, level)
    if past.state is PressureState.NOMINAL or (level >= known and past.state is not PressureState.RECOVERY):
        return replace(past, calm_since_s=None)
    calm_since = now if past.calm_since_s is None else past.calm_since_s
    past = replace(past, calm_since_s=calm_since)
    return _better(scene, past, level) if now - calm_since >= hold_s(scene.policy, past) else past


_WORSE = {Level.TIGHT: PressureState.WATCH, Level.SHORT: PressureState.SHRINK, Level.BELOW: PressureState.CRITICAL}


def _worse(scene: Scene, past: Past, level: Level) -> Past:
    now, relapses = scene.pressure.at_s, past.relapses
    if level >= Level.SHORT and past.state not in _PRESSED:
        forgotten_s = RELAPSE_FORGOTTEN * scene.policy.hold_s * 2**past.relapses
        lately = past.eased_at_s is not None and now - past.eased_at_s < forgotten_s
        relapses = min(MOST_RELAPSES, past.relapses + 1) if lately else 0
    return replace(past, state=_WORSE[level], since_s=now, calm_since_s=None, relapses=relapses)


def _better(scene: Scene, past: Past, level: Level) -> Past:
    """One step down, from which the next calm is counted anew."""
    now, eased_at = scene.pressure.at_s, past.eased_at_s
    match past.state:
        case PressureState.CRITICAL if level is Level.SHORT:
            state = PressureState.SHRINK
        case PressureState.CRITICAL | PressureState.SHRINK:
            state, eased_at = PressureState.RECOVERY, now
        case PressureState.RECOVERY if not _settled(scene, level):
            return past
        case _:
            state = PressureState.WATCH if level is Level.TIGHT else PressureState.NOMINAL
    return replace(past, state=state, since_s=now, calm_since_s=None, eased_at_s=eased_at)


def _settled(scene: Scene, level: Level) -> bool:
    """Whether there is nothing left to fill up, or now is not the time."""
    return level is Level.TIGHT or scene.supply.ready >= min(scene.supply.wanted, affordable(scene))


def hold_s(policy: PressurePolicy, past: Past) -> float:
    """How long calm must hold. Under pressure twice as long after every relapse: no load makes it swing for long."""
    return float(policy.hold_s * (2**past.relapses if past.state in _PRESSED else 1))


def _shrinking(scene: Scene, now: Past, *, refuses: bool) -> Iterator[AutoscaleAction]:
    if not _refills(now):
        yield AutoscaleAction(decision=_D.STOP_REFILL)
    evicted = _to_evict(scene, now)
    if evicted:
        yield AutoscaleAction(decision=_D.EVICT_WARM, count=evicted)
    if now.state in _PRESSED and scene.supply.idle_disks and PressureReason.DISK_FLOOR in now.reasons:
        yield AutoscaleAction(decision=_D.TRIM_IDLE_DISK, count=scene.supply.idle_disks)
    if refuses:
        yield AutoscaleAction(decision=_D.REFUSE_NEW_WORK)


def _growing(scene: Scene, now: Past, target: ReadyQueueTarget, *, refuses: bool) -> Iterator[AutoscaleAction]:
    if now.refuses and not refuses:
        yield AutoscaleAction(decision=_D.ADMIT_NEW_WORK)
    missing = target.target - scene.supply.ready
    if not _refills(now):
        return
    if missing <= 0 or not _cooled(scene, now):
        yield AutoscaleAction(decision=_D.HOLD)
        return
    step = missing if now.state is PressureState.NOMINAL else math.ceil(missing / RECOVERY_STEPS)
    yield AutoscaleAction(decision=_D.REFILL_HOT, count=step)


def _refills(now: Past) -> bool:
    return now.state in (PressureState.NOMINAL, PressureState.RECOVERY) and not now.reasons


def _cooled(scene: Scene, now: Past) -> bool:
    return now.refilled_at_s is None or scene.pressure.at_s - now.refilled_at_s >= scene.policy.cooldown_s


def _to_evict(scene: Scene, now: Past) -> int:
    """As many as bring the machine back above its refill floors and limits, with the margin; all, below a floor."""
    supply, pressure = scene.supply, scene.pressure
    over = _over(supply)
    if now.state is PressureState.CRITICAL and _below(scene):
        return supply.ready
    if now.state not in _PRESSED:
        return min(supply.ready, over)
    memory, disk = refill_floors(scene)
    lacking = max(
        over,
        _entries(LEAVE_FACTOR * memory - pressure.memory_bytes, supply.entry_memory_bytes),
        _entries(LEAVE_FACTOR * disk - pressure.disk_bytes, supply.entry_disk_bytes),
    )
    return min(supply.ready, lacking)


def _below(scene: Scene) -> bool:
    floors, pressure = scene.floors, scene.pressure
    return pressure.memory_bytes < floors.memory_bytes or pressure.disk_bytes < floors.disk_bytes


def _entries(lacking_bytes: float, entry_bytes: int) -> int:
    return max(0, math.ceil(lacking_bytes / max(1, entry_bytes)))
