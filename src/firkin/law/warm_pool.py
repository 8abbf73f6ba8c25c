"""Warm pools: sandboxes made before they are asked for."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from firkin.law.errors import InvalidReason, InvalidSpec
from firkin.law.ids import SandboxId, TemplateId, WarmPoolKey


class WarmEvictionPolicy(StrEnum):
    OLDEST = "oldest"
    NEWEST = "newest"


class WarmLeasePolicy(StrEnum):
    REQUIRE_READY = "require_ready"
    CREATE_IF_EMPTY = "create_if_empty"


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmPoolSpec:
    """Keep `depth` sandboxes ready; below `min_ready` the pool counts as short."""

    depth: int
    min_ready: int
    eviction: WarmEvictionPolicy = WarmEvictionPolicy.OLDEST

    def __post_init__(self) -> None:
        if self.depth < 0 or not 0 <= self.min_ready <= self.depth:
            raise InvalidSpec(
                "check warm pool",
                InvalidReason.INVALID_RESOURCES,
                f"depth {self.depth} and min_ready {self.min_ready}: need 0 <= min_ready <= depth",
            )

    @classmethod
    def of_depth(cls, depth: int) -> WarmPoolSpec:
        return cls(depth=depth, min_ready=depth)


@dataclass(frozen=True, slots=True)
class WarmPoolTarget:
    template_id: TemplateId
    spec: WarmPoolSpec


@dataclass(frozen=True, slots=True)
class WarmPoolEntry:
    key: WarmPoolKey
    ready: int
    total: int


@dataclass(frozen=True, slots=True)
class WarmPoolStatus:
    entries: tuple[WarmPoolEntry, ...] = ()


@dataclass(frozen=True, slots=True)
class WarmLease:
    key: WarmPoolKey
    sandbox_id: SandboxId


@dataclass(frozen=True, slots=True)
class WarmMaintainReport:
    created: int = 0
    evicted: int = 0
    ready: int = 0
