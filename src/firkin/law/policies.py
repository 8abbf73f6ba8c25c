"""What an operator allows. A backend enforces all of it from its start on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from firkin.law.errors import InvalidReason, InvalidSpec
from firkin.law.pressure import BackpressurePolicy, PressurePolicy
from firkin.law.resources import GIB, SandboxResources

USUAL_TIMEOUT_S = 300.0
MAX_POLICY_S = 320_000_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """Most that may be alive at once, and what the machine must keep free. None is no limit.

    Limits count what sandboxes were promised; floors look at the machine as it is.
    """

    max_sandboxes: int | None = None
    max_vcpus: int | None = None
    max_memory_bytes: int | None = None
    memory_floor_bytes: int = GIB // 2
    disk_floor_bytes: int = 1 * GIB


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadlinePolicy:
    """`default_timeout_s` applies when a spec has no deadline (None: never ends); above `max_timeout_s` is refused.

    The usual 300 s are no more than `max_timeout_s`; another default above it raises `InvalidSpec`, as does a
    time that is not above 0 and at most ten years.
    """

    default_timeout_s: float | None = USUAL_TIMEOUT_S
    max_timeout_s: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("default_timeout_s", self.default_timeout_s), ("max_timeout_s", self.max_timeout_s)):
            if value is not None and not 0 < value <= MAX_POLICY_S:
                raise _invalid(f"{name} is {value:g}; it must be above 0 and at most {MAX_POLICY_S:.0f} s, or None")
        usual, most = self.default_timeout_s, self.max_timeout_s
        if usual is None or most is None or usual <= most:
            return
        if usual != USUAL_TIMEOUT_S:
            raise _invalid(f"default_timeout_s is {usual:g} and max_timeout_s {most:g}; it must not be more than that")
        object.__setattr__(self, "default_timeout_s", most)


def _invalid(detail: str) -> InvalidSpec:
    return InvalidSpec("check the policies", InvalidReason.INVALID_SETTINGS, detail)


@dataclass(frozen=True, slots=True, kw_only=True)
class HygienePolicy:
    """`kill_on_close` ends every sandbox at shutdown; `ended_kept_s` is how long an end can be asked about;
    `unused_layers_kept_s` is how long files that no template needs any more wait to be needed again."""

    kill_on_close: bool = False
    ended_kept_s: float = 7 * 24 * 3600.0
    unused_layers_kept_s: float = 7 * 24 * 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Policies:
    """`most_frozen`: how many sandboxes of an owner may be paused with their memory at once; no limit for others."""

    capacity: Capacity = field(default_factory=Capacity)
    deadlines: DeadlinePolicy = field(default_factory=DeadlinePolicy)
    hygiene: HygienePolicy = field(default_factory=HygienePolicy)
    pressure: PressurePolicy = field(default_factory=PressurePolicy)
    backpressure: BackpressurePolicy = field(default_factory=BackpressurePolicy)
    default_resources: SandboxResources = field(default_factory=SandboxResources)
    default_volume_bytes: int = 10 * GIB
    most_frozen: Mapping[str, int] = field(default_factory=dict)
