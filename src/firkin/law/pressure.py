"""How a node keeps itself above its floors: what is measured, what is decided, what the operator allows.

Values only. Whoever plans makes an `AutoscalePlan` out of snapshots and nothing
else; whoever admits answers every wish with `AdmitNow`, `Queue` or `Reject`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from firkin.law.errors import InvalidReason, InvalidSpec, RejectReason
from firkin.law.resources import GIB, MIB

_SHARE = 0.05
_MOST_MEMORY = 4 * GIB
_MOST_DISK = 10 * GIB


class PressureState(StrEnum):
    """`NOMINAL` and `WATCH` refuse nobody; `SHRINK` gives up what is spare, `CRITICAL` refuses when that was not
    enough, and `RECOVERY` fills up again, slowly."""

    NOMINAL = "nominal"
    WATCH = "watch"
    SHRINK = "shrink"
    CRITICAL = "critical"
    RECOVERY = "recovery"


class PressureReason(StrEnum):
    DISK_FLOOR = "disk_floor"
    MEMORY_FLOOR = "memory_floor"
    CPU_PRESSURE = "cpu_pressure"
    IO_PRESSURE = "io_pressure"
    DEMAND_SPIKE = "demand_spike"
    MANUAL_LIMIT = "manual_limit"


class AutoscaleDecision(StrEnum):
    """In the order in which a node shrinks; it grows in the opposite one."""

    HOLD = "hold"
    STOP_REFILL = "stop_refill"
    EVICT_WARM = "evict_warm"
    TRIM_IDLE_DISK = "trim_idle_disk"
    REFUSE_NEW_WORK = "refuse_new_work"
    ADMIT_NEW_WORK = "admit_new_work"
    REFILL_HOT = "refill_hot"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReserveFloorPolicy:
    """What must stay free. Below a floor nothing new begins; below a refill floor nothing is kept ready.

    A refill floor of None is twice the floor, or 5 % of the machine where that is more (at most 4 GiB of
    memory, 10 GiB of disk).
    """

    memory_bytes: int = GIB // 2
    disk_bytes: int = GIB
    refill_memory_bytes: int | None = None
    refill_disk_bytes: int | None = None

    def refill_memory(self, total_bytes: int) -> int:
        """The refill floor on a machine with that much memory; never below the floor itself."""
        return _refill(self.memory_bytes, self.refill_memory_bytes, total_bytes, _MOST_MEMORY)

    def refill_disk(self, total_bytes: int) -> int:
        """The refill floor on a disk of that size; never below the floor itself."""
        return _refill(self.disk_bytes, self.refill_disk_bytes, total_bytes, _MOST_DISK)


def _refill(floor: int, wanted: int | None, total: int, most: int) -> int:
    if wanted is not None:
        return max(floor, wanted)
    return max(2 * floor, min(int(total * _SHARE), most))


@dataclass(frozen=True, slots=True, kw_only=True)
class PressurePolicy:
    """When the node calls itself pressed. Percentages are of time in which somebody had to wait (PSI, `some`).

    A calmer state must hold for `hold_s` before it is believed, and longer after each relapse; between two
    steps of refilling pass `cooldown_s`.
    """

    refill_memory_bytes: int | None = None
    refill_disk_bytes: int | None = None
    cpu_stall_pct: float = 95.0
    io_stall_pct: float = 60.0
    hold_s: float = 2.0
    cooldown_s: float = 1.0
    sample_every_s: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BackpressurePolicy:
    """How long whoever finds no room may wait for some, and how many at once; launches at once None: by the machine.

    By default nobody waits: who calls a library decides for himself. A server has a default of its own.
    """

    max_pending: int = 256
    max_wait_s: float = 0.0
    launches_at_once: int | None = None

    def __post_init__(self) -> None:
        if self.max_pending < 0 or self.max_wait_s < 0 or (self.launches_at_once or 1) < 1:
            raise InvalidSpec(
                "check the policies",
                InvalidReason.INVALID_SETTINGS,
                "the queue's length and wait must not be negative, and at least 1 launch must be allowed at once",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class DemandSnapshot:
    """Sandboxes that somebody has, requests without room, and launches that wait for their turn."""

    active: int = 0
    waiting: int = 0
    launches_waiting: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SupplySnapshot:
    """Entries that are ready, how many the pools want, and what one takes.

    `room` is how many the limits leave for them beside active work and those who wait; None is no limit.
    """

    ready: int = 0
    wanted: int = 0
    entry_memory_bytes: int = 8 * MIB
    entry_disk_bytes: int = MIB
    room: int | None = None
    idle_disks: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PressureSnapshot:
    """The machine at `at_s` of a clock that never goes back. A stall of None is one that this kernel does not tell."""

    at_s: float
    memory_bytes: int
    memory_total_bytes: int
    disk_bytes: int
    disk_total_bytes: int
    cpu_stall_pct: float | None = None
    io_stall_pct: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadyQueueTarget:
    """How many entries the pools want, and how many the machine can spare: what they get is the lesser."""

    wanted: int
    affordable: int

    @property
    def target(self) -> int:
        return min(self.wanted, self.affordable)


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoscaleAction:
    """`count` is of entries or disks, where the decision is about some."""

    decision: AutoscaleDecision
    count: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoscalePlan:
    """What to do now. Nothing in it touches a sandbox that somebody has."""

    state: PressureState
    reasons: frozenset[PressureReason]
    target: ReadyQueueTarget
    actions: tuple[AutoscaleAction, ...]
    refuses: bool


@dataclass(frozen=True, slots=True)
class AdmitNow:
    """There is room."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """There may be room soon: `position` counts from 1, `deadline_s` is on the clock that never goes back."""

    position: int
    deadline_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Reject:
    """There is none, and waiting is not offered."""

    reason: RejectReason


Backpressure = AdmitNow | Queue | Reject


@dataclass(frozen=True, slots=True, kw_only=True)
class PressureChange:
    """A change of state, as it is remembered: seconds since the start of the node."""

    at_s: float
    state: PressureState
    reasons: tuple[PressureReason, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """Of one limit: None where there is none."""

    name: str
    limit: int | None
    active: int
    warm: int
    unit: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LineStatus:
    """Who waits for room, and what became of those who did. `waited_ms` is of the last that got some."""

    waiting: int = 0
    max_pending: int = 0
    max_wait_s: float = 0.0
    admitted_at_once: int = 0
    admitted_after_waiting: int = 0
    left: int = 0
    rejected: dict[RejectReason, int] = field(default_factory=dict)
    waited_ms: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStatus:
    """How a node is: its state and why, what is free and what must stay so, who waits."""

    plan: AutoscalePlan
    measured: PressureSnapshot
    floors: ReserveFloorPolicy
    shares: tuple[Share, ...]
    line: LineStatus
    ready: int
    launching: int
    launches_waiting: int
    launches_at_once: int
    evicted: int
    trimmed_bytes: int
    changes: tuple[PressureChange, ...] = ()
