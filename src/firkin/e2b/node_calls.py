"""``/firkin/v1/node``: how the node is and why, and limits that an operator changes while it serves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any  # the JSON edge

import msgspec

from firkin.e2b.exchange import Exchange, Refused
from firkin.e2b.models import parse
from firkin.law.backend import SandboxBackend
from firkin.law.errors import RejectReason
from firkin.law.node import NodeControl
from firkin.law.pressure import NodeStatus, Share
from firkin.law.resources import MIB

_MAX_BODY_BYTES = 4096
_MOST = 10**9


class Limits(msgspec.Struct, forbid_unknown_fields=True):
    """None is no limit; what is left out stays as it is."""

    maxSandboxes: int | msgspec.UnsetType | None = msgspec.UNSET
    maxVcpus: int | msgspec.UnsetType | None = msgspec.UNSET
    maxMemoryMB: int | msgspec.UnsetType | None = msgspec.UNSET


class NodeCalls:
    def __init__(self, backend: SandboxBackend) -> None:
        self._backend = backend

    async def answer(self, exchange: Exchange, words: list[str]) -> None:
        match exchange.method, words:
            case "GET", ["node"]:
                await exchange.answer_json(200, node_json(await self._node().status()))
            case "PATCH", ["node", "limits"]:
                limits = parse(await exchange.body(_MAX_BODY_BYTES), Limits)
                await exchange.answer_json(200, node_json(await self._limited(limits)))
            case _:
                raise Refused(404, f"no route {exchange.method} {exchange.path[:200]}")

    async def _limited(self, limits: Limits) -> NodeStatus:
        capacity = await self._node().capacity()
        memory = _checked("maxMemoryMB", limits.maxMemoryMB)
        capacity = replace(
            capacity,
            max_sandboxes=_or(_checked("maxSandboxes", limits.maxSandboxes), capacity.max_sandboxes),
            max_vcpus=_or(_checked("maxVcpus", limits.maxVcpus), capacity.max_vcpus),
            max_memory_bytes=_or(memory * MIB if isinstance(memory, int) else memory, capacity.max_memory_bytes),
        )
        return await self._node().limit(capacity)

    def _node(self) -> NodeControl:
        node = self._backend.node
        if node is None:
            raise Refused(404, "this server does not tell how its node is")
        return node


def _checked(name: str, value: int | msgspec.UnsetType | None) -> int | msgspec.UnsetType | None:
    if isinstance(value, int) and not 0 <= value <= _MOST:
        raise Refused(400, f"{name} is {value}; it must be from 0 to {_MOST}, or null for no limit", should_retry=False)
    return value


def _or(value: int | msgspec.UnsetType | None, otherwise: int | None) -> int | None:
    return otherwise if isinstance(value, msgspec.UnsetType) else value


def node_json(status: NodeStatus) -> dict[str, Any]:
    """As clients see it. Sizes in bytes, times in milliseconds."""
    plan, measured, floors, line = status.plan, status.measured, status.floors, status.line
    return {
        "state": plan.state.value,
        "reasons": sorted(reason.value for reason in plan.reasons),
        "refuses": plan.refuses,
        "memory": {
            "free": measured.memory_bytes,
            "total": measured.memory_total_bytes,
            "floor": floors.memory_bytes,
            "refillFloor": floors.refill_memory(measured.memory_total_bytes),
        },
        "disk": {
            "free": measured.disk_bytes,
            "total": measured.disk_total_bytes,
            "floor": floors.disk_bytes,
            "refillFloor": floors.refill_disk(measured.disk_total_bytes),
        },
        "cpuStallPct": measured.cpu_stall_pct,
        "ioStallPct": measured.io_stall_pct,
        "limits": [_share_json(share) for share in status.shares],
        "queue": {
            "waiting": line.waiting,
            "maxPending": line.max_pending,
            "maxWaitMs": round(line.max_wait_s * 1000),
            "admittedAtOnce": line.admitted_at_once,
            "admittedAfterWaiting": line.admitted_after_waiting,
            "left": line.left,
            "lastWaitedMs": round(line.waited_ms, 1),
            "rejected": {reason.value: line.rejected.get(reason, 0) for reason in RejectReason},
        },
        "launches": {
            "running": status.launching,
            "waiting": status.launches_waiting,
            "atOnce": status.launches_at_once,
        },
        "spare": {
            "ready": status.ready,
            "wanted": plan.target.wanted,
            "target": plan.target.target,
            "evicted": status.evicted,
            "trimmedBytes": status.trimmed_bytes,
        },
        "changes": [
            {"atS": round(change.at_s, 3), "state": change.state.value, "reasons": [*change.reasons]}
            for change in status.changes
        ],
    }


def _share_json(share: Share) -> dict[str, Any]:
    unit = {"unit": share.unit} if share.unit else {}
    return {"name": share.name, "limit": share.limit, "active": share.active, "warm": share.warm, **unit}
