"""What an operator allows. A backend enforces all of it from its start on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from firkin.law.pressure import BackpressurePolicy, PressurePolicy
from firkin.law.resources import GIB, SandboxResources


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
    """`default_timeout_s` applies when a spec has no deadline (None: never ends); above `max_timeout_s` is refused."""

    default_timeout_s: float | None = 300.0
    max_timeout_s: float | None = None


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
