"""The node's own hand on its load: it measures, has a plan made and carries that out, for as long as it serves.

Every change of state is a line of the log and remembered. What is done is done to
spare entries and to disks of frozen sandboxes; what somebody runs is left alone.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from dataclasses import dataclass, replace

from firkin.engine.admission import Admission, HostGauge, Kind
from firkin.engine.clock import Clock
from firkin.engine.idle_disks import IdleDisks
from firkin.engine.launches import Launches
from firkin.engine.pressure_plan import LEAVE_FACTOR, Past, Scene, plan, refill_floors
from firkin.engine.spare import SpareRoom
from firkin.engine.stalls import StallGauge
from firkin.engine.waiting_line import WaitingLine
from firkin.law.errors import FirkinError
from firkin.law.policies import Capacity, Policies
from firkin.law.pressure import (
    AutoscaleAction,
    AutoscaleDecision,
    AutoscalePlan,
    DemandSnapshot,
    NodeStatus,
    PressureChange,
    PressureReason,
    PressureSnapshot,
    PressureState,
    ReserveFloorPolicy,
    Share,
    SupplySnapshot,
)

HURRIED_S = 0.25
CARRIED_OUT_WITHIN_S = 30.0
MOST_REMEMBERED = 50
_CALM = (PressureState.NOMINAL,)
_PRESSED = (PressureState.SHRINK, PressureState.CRITICAL)
_BETWEEN_STEPS = "the node recovers from pressure"
_D = AutoscaleDecision
_log = logging.getLogger("firkin.engine")


@dataclass(slots=True, eq=False)
class PressureFigures:
    """Counts since the start. Times are of the last episode; None when there was none that got so far."""

    trimmed_bytes: int = 0
    episodes: int = 0
    to_safe_floor_ms: float | None = None
    clear_to_ready_ms: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Hands:
    """What the keeper reads and moves."""

    admission: Admission
    gauge: HostGauge
    spare: SpareRoom
    line: WaitingLine
    launches: Launches
    idle_disks: IdleDisks


class Pressure:
    def __init__(self, hands: Hands, policies: Policies, clock: Clock, stalls: StallGauge | None = None) -> None:
        self._hands = hands
        self._policies = policies
        self._clock = clock
        self.stalls = stalls or StallGauge()
        self.figures = PressureFigures()
        self._past = Past()
        self._changes: deque[PressureChange] = deque(maxlen=MOST_REMEMBERED)
        self._began_s = clock.monotonic()
        self._pressed_at: float | None = None
        self._safe_at: float | None = None
        self._last: tuple[AutoscalePlan, PressureSnapshot] | None = None

    async def run(self) -> None:
        """Until cancelled: once in `sample_every_s`, more often while there is something to watch."""
        every_s = self._policies.pressure.sample_every_s
        while True:
            made = await self.step()
            pause_s = every_s if made.state in _CALM else min(every_s, HURRIED_S)
            await self._clock.sleep_until(self._clock.monotonic() + pause_s)

    async def step(self) -> AutoscalePlan:
        """Measure, plan and act once."""
        scene = self._scene()
        before, (made, self._past) = self._past.state, plan(scene, self._past)
        self._last = made, scene.pressure
        if made.state is not before:
            self._tell(before, made, scene)
        self._take_times(scene, made)
        await self._carry_out(made)
        return made

    def status(self) -> NodeStatus:
        """How it is, as of the last look; looks first where there was none."""
        hands = self._hands
        if self._last is None:
            scene = self._scene()
            self._last = plan(scene, self._past)[0], scene.pressure
        made, measured = self._last
        target = replace(made.target, wanted=hands.spare.wanted())  # as it is now, like what is ready
        return NodeStatus(
            plan=replace(made, target=target),
            measured=measured,
            floors=self._floors(),
            shares=tuple(_shares(hands.admission)),
            line=hands.line.status(),
            ready=hands.spare.ready(),
            launching=hands.launches.running,
            launches_waiting=hands.launches.waiting,
            launches_at_once=hands.launches.at_once,
            evicted=hands.spare.given_up,
            trimmed_bytes=self.figures.trimmed_bytes,
            changes=tuple(self._changes),
        )

    def close_line(self) -> None:
        """See `NodeControl.drain`."""
        self._hands.line.close()

    def spare_utilization_pct(self) -> float | None:
        """How much of what could be kept ready is, by what is scarcest of memory, disk and, where they are limited,
        processors; None where none could."""
        if self._last is None:
            return None
        supply, measured, floors = self._supply(), self._last[1], self._floors()
        shares = []
        for free, floor, entry in (
            (measured.memory_bytes, floors.memory_bytes, supply.entry_memory_bytes),
            (measured.disk_bytes, floors.disk_bytes, supply.entry_disk_bytes),
        ):
            room = free + supply.ready * entry - floor
            if room <= 0:
                return None
            shares.append(100.0 * supply.ready * entry / room)
        most, active, warm = self._hands.admission.capacity.max_vcpus, *self._hands.admission.columns.values()
        if most is not None:
            if most <= active.vcpus:
                return None
            shares.append(100.0 * warm.vcpus / (most - active.vcpus))
        return max(shares)

    def _scene(self) -> Scene:
        hands = self._hands
        hands.gauge.forget()
        room, total = hands.gauge.read(), hands.gauge.totals()
        return Scene(
            demand=DemandSnapshot(
                active=hands.admission.columns[Kind.ACTIVE].sandboxes,
                waiting=len(hands.line),
                launches_waiting=hands.launches.waiting,
            ),
            supply=self._supply(),
            pressure=PressureSnapshot(
                at_s=self._clock.monotonic(),
                memory_bytes=room.memory_bytes,
                memory_total_bytes=total.memory_bytes,
                disk_bytes=room.disk_bytes,
                disk_total_bytes=total.disk_bytes,
                cpu_stall_pct=self.stalls.cpu_pct(),
                io_stall_pct=self.stalls.io_pct(),
            ),
            floors=self._floors(),
            policy=self._policies.pressure,
        )

    def _supply(self) -> SupplySnapshot:
        spare, known = self._hands.spare, SupplySnapshot()
        ready, memory = spare.ready(), spare.memory_bytes()
        return replace(
            known,
            ready=ready,
            wanted=spare.wanted(),
            entry_memory_bytes=memory // ready if ready and memory else known.entry_memory_bytes,
            room=self._room(),
            idle_disks=len(self._hands.idle_disks),
        )

    def _room(self) -> int | None:
        """How many entries the limits leave room for beside active work."""
        admission, default = self._hands.admission, self._policies.default_resources
        capacity, active, warm = admission.capacity, *admission.columns.values()
        count = max(1, warm.sandboxes)
        each = (1, warm.vcpus // count or default.vcpus, warm.memory_bytes // count or default.memory_bytes)
        limits = (capacity.max_sandboxes, capacity.max_vcpus, capacity.max_memory_bytes)
        taken = (active.sandboxes, active.vcpus, active.memory_bytes)
        rooms = [(most - used) // one for most, used, one in zip(limits, taken, each, strict=True) if most is not None]
        return max(0, min(rooms)) if rooms else None

    def _floors(self) -> ReserveFloorPolicy:
        capacity, policy = self._hands.admission.capacity, self._policies.pressure
        return ReserveFloorPolicy(
            memory_bytes=capacity.memory_floor_bytes,
            disk_bytes=capacity.disk_floor_bytes,
            refill_memory_bytes=policy.refill_memory_bytes,
            refill_disk_bytes=policy.refill_disk_bytes,
        )

    async def _carry_out(self, made: AutoscalePlan) -> None:
        decisions = {action.decision: action for action in made.actions}
        self._hands.line.pressed = made.refuses
        self._hands.admission.margin = LEAVE_FACTOR if made.refuses else 1.0  # what is refused is what the plan says
        self._guide_refill(made, decisions)
        try:
            async with asyncio.timeout(CARRIED_OUT_WITHIN_S):
                if evict := decisions.get(_D.EVICT_WARM):
                    because = f"the node is under pressure ({_names(made.reasons)})"
                    await self._hands.spare.give_up(evict.count, because=because)
                if _D.TRIM_IDLE_DISK in decisions:
                    self.figures.trimmed_bytes += await self._hands.idle_disks.trim()
        except (FirkinError, OSError, TimeoutError) as error:
            _log.error("pressure not relieved error=%s", error or f"no end within {CARRIED_OUT_WITHIN_S:g} s")

    def _guide_refill(self, made: AutoscalePlan, decisions: dict[AutoscaleDecision, AutoscaleAction]) -> None:
        spare, admission = self._hands.spare, self._hands.admission
        if _D.STOP_REFILL in decisions:
            admission.most_warm = 0
            because = _names(made.reasons) or made.state.value
            if spare.held != because:
                spare.hold(because)
            return
        if made.state is PressureState.NOMINAL:
            before, admission.most_warm = admission.most_warm, made.target.affordable
            if before is not None and made.target.affordable > before:
                spare.room_freed()
        elif refill := decisions.get(_D.REFILL_HOT):
            admission.most_warm = spare.ready() + refill.count
        elif admission.columns[Kind.WARM].sandboxes >= (admission.most_warm or 0):
            spare.hold(_BETWEEN_STEPS)  # rather than have what is made refused, and put off for longer
            return
        if spare.held is not None:
            spare.resume()

    def _tell(self, before: PressureState, made: AutoscalePlan, scene: Scene) -> None:
        at_s = scene.pressure.at_s - self._began_s
        self._changes.append(PressureChange(at_s=at_s, state=made.state, reasons=tuple(sorted(made.reasons))))
        level = logging.WARNING if made.state in _PRESSED else logging.INFO
        _log.log(
            level,
            "pressure state=%s before=%s reasons=%s memory_mb=%d disk_mb=%d ready=%d waiting=%d",
            made.state.value,
            before.value,
            _names(made.reasons) or "none",
            scene.pressure.memory_bytes >> 20,
            scene.pressure.disk_bytes >> 20,
            scene.supply.ready,
            scene.demand.waiting,
        )

    def _take_times(self, scene: Scene, made: AutoscalePlan) -> None:
        """From pressure to safe floors, and from those to pools that are as full as they can be."""
        now, figures = scene.pressure.at_s, self.figures
        memory, disk = refill_floors(scene)
        safe = scene.pressure.memory_bytes >= memory and scene.pressure.disk_bytes >= disk
        if made.state in _PRESSED and self._pressed_at is None and not safe:
            self._pressed_at, self._safe_at = now, None
            figures.episodes += 1
        if self._pressed_at is not None and safe:
            figures.to_safe_floor_ms = (now - self._pressed_at) * 1000
            self._pressed_at, self._safe_at = None, now
        if self._safe_at is not None and made.target.target and scene.supply.ready >= made.target.target:
            figures.clear_to_ready_ms = (now - self._safe_at) * 1000
            self._safe_at = None


class LocalNode:
    """The `NodeControl` of the engine."""

    def __init__(self, pressure: Pressure, admission: Admission) -> None:
        self._pressure = pressure
        self._admission = admission

    async def status(self) -> NodeStatus:
        return self._pressure.status()

    async def limit(self, capacity: Capacity) -> NodeStatus:
        self._admission.capacity = capacity
        await self._pressure.step()
        return self._pressure.status()

    async def drain(self) -> None:
        self._pressure.close_line()

    async def capacity(self) -> Capacity:
        return self._admission.capacity


def _shares(admission: Admission) -> list[Share]:
    capacity, active, warm = admission.capacity, *admission.columns.values()
    return [
        Share(name="sandboxes", limit=capacity.max_sandboxes, active=active.sandboxes, warm=warm.sandboxes),
        Share(name="vcpus", limit=capacity.max_vcpus, active=active.vcpus, warm=warm.vcpus),
        Share(
            name="memory",
            limit=capacity.max_memory_bytes,
            active=active.memory_bytes,
            warm=warm.memory_bytes,
            unit="bytes",
        ),
    ]


def _names(reasons: frozenset[PressureReason]) -> str:
    return ",".join(sorted(reasons))
