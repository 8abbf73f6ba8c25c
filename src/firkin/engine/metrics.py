"""Figures of the runtime, and what one sandbox uses: afresh, or over its life."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any  # the JSON edge: the agent's answer

from firkin.engine.guest_faults import process_errors
from firkin.engine.node import Node
from firkin.engine.roster import Resident
from firkin.engine.substrate import substrate
from firkin.law.errors import RejectReason, SandboxUnavailable
from firkin.law.ids import SandboxId
from firkin.law.metrics import Metric, MetricFilter, MetricScope, MetricUnit, SandboxUsage
from firkin.law.states import SandboxState
from firkin.law.templates import TemplateState

USAGE_WITHIN_S = 5.0


class LocalMetrics:
    """The `MetricControl` of the engine."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def snapshot(self, filter: MetricFilter) -> Sequence[Metric]:
        at = self._node.clock.now()
        counts = {
            **self._of_sandboxes(),
            **self._of_work(),
            **self._of_pools(),
            **self._of_host(),
            **self._of_load(),
            **await self._of_templates(),
        }
        return [
            Metric(name=name, value=value, unit=unit, scope=MetricScope.RUNTIME, observed_at=at)
            for name, (value, unit) in counts.items()
            if name.startswith(filter.prefix)
        ]

    async def usage(self, sandbox_id: SandboxId) -> SandboxUsage:
        operation = "measure a sandbox"
        resident = await self._node.roster.meet(operation, sandbox_id)
        resident.require_running(operation)
        if resident.instance is None:
            raise SandboxUnavailable(operation, sandbox_id, "it has ended")
        inside = await self._node.links.connect(resident)
        async with substrate(operation, resident.info.driver, within_s=USAGE_WITHIN_S, sandbox_id=sandbox_id):
            counters = await resident.instance.usage()
        with process_errors(operation, sandbox_id):
            guest = await inside.link.call("usage", {}, within_s=USAGE_WITHIN_S)
        return self._sample(resident, counters, guest)

    async def history(
        self, sandbox_id: SandboxId, start: datetime | None = None, end: datetime | None = None
    ) -> Sequence[SandboxUsage]:
        """See `MetricControl.history`. One that runs and has no sample yet is sampled at once."""
        resident = await self._node.roster.meet("measure a sandbox", sandbox_id)
        found = self._node.samples.history(resident)
        if not found and resident.info.state is SandboxState.RUNNING:
            first = await self._node.samples.now(resident)
            found = [] if first is None else [first]
        return [
            usage
            for usage in found
            if (start is None or usage.observed_at >= start) and (end is None or usage.observed_at <= end)
        ]

    def _sample(self, resident: Resident, counters: Mapping[str, int], guest: Mapping[str, Any]) -> SandboxUsage:
        resources = resident.info.resources
        return SandboxUsage(
            sandbox_id=resident.id,
            observed_at=self._node.clock.now(),
            cpu_count=resources.vcpus,
            cpu_used_pct=self._node.samples.cpu_pct(resident, counters.get("cpu_us", 0)),
            memory_used_bytes=counters.get("memory_bytes", 0),
            memory_cache_bytes=counters.get("memory_cache_bytes", 0),
            memory_total_bytes=resources.memory_bytes,
            disk_used_bytes=_said(guest, "disk_used", counters.get("disk_used_bytes", 0)),
            disk_total_bytes=_said(guest, "disk_total", resources.disk_bytes),
        )

    def _of_sandboxes(self) -> dict[str, tuple[int | float, MetricUnit]]:
        states = [resident.info.state for resident in self._node.roster]
        counts = {f"sandboxes.{state.value}": (states.count(state), MetricUnit.COUNT) for state in SandboxState}
        del counts[f"sandboxes.{SandboxState.DELETED.value}"]
        admission = self._node.admission
        return {
            **counts,
            "promised.sandboxes": (admission.sandboxes, MetricUnit.COUNT),
            "promised.vcpus": (admission.vcpus, MetricUnit.COUNT),
            "promised.memory": (admission.memory_bytes, MetricUnit.BYTES),
        }

    def _of_work(self) -> dict[str, tuple[int | float, MetricUnit]]:
        figures = self._node.figures
        return {
            "creates.succeeded": (figures.created, MetricUnit.COUNT),
            "creates.failed": (figures.create_failed, MetricUnit.COUNT),
            "creates.refused": (figures.refused, MetricUnit.COUNT),
            "creates.last": (figures.create_ms, MetricUnit.MILLISECONDS),
            **{
                f"ends.{cause.name.lower()}": (count, MetricUnit.COUNT)
                for cause, count in sorted(figures.ended.items())
            },
        }

    def _of_pools(self) -> dict[str, tuple[int | float, MetricUnit]]:
        pools = list(self._node.warm)
        hits, misses = sum(pool.hits for pool in pools), sum(pool.misses for pool in pools)
        known: dict[str, tuple[int | float, MetricUnit]] = {
            "pools.ready": (self._node.warm.ready(), MetricUnit.COUNT),
            "pools.wanted": (self._node.warm.wanted(), MetricUnit.COUNT),
            "pools.hits": (hits, MetricUnit.COUNT),
            "pools.misses": (misses, MetricUnit.COUNT),
        }
        if hits + misses:
            known["autoscale.ready_queue_hit_rate_pct"] = (100 * hits / (hits + misses), MetricUnit.PERCENT)
        return known

    def _of_host(self) -> dict[str, tuple[int | float, MetricUnit]]:
        room = self._node.gauge.read()
        return {
            "host.memory.available": (room.memory_bytes, MetricUnit.BYTES),
            "host.disk.available": (room.disk_bytes, MetricUnit.BYTES),
        }

    def _of_load(self) -> dict[str, tuple[int | float | str, MetricUnit]]:
        status, figures = self._node.pressure.status(), self._node.pressure.figures
        spare_pct = self._node.pressure.spare_utilization_pct()
        line = status.line
        known: dict[str, tuple[int | float | str | None, MetricUnit]] = {
            "autoscale.state": (status.plan.state.value, MetricUnit.TEXT),
            "autoscale.reasons": (",".join(sorted(status.plan.reasons)), MetricUnit.TEXT),
            "autoscale.target": (status.plan.target.target, MetricUnit.COUNT),
            "autoscale.ready": (status.ready, MetricUnit.COUNT),
            "autoscale.evicted": (status.evicted, MetricUnit.COUNT),
            "autoscale.trimmed": (figures.trimmed_bytes, MetricUnit.BYTES),
            "autoscale.episodes": (figures.episodes, MetricUnit.COUNT),
            "autoscale.pressure_to_safe_floor_ms": (figures.to_safe_floor_ms, MetricUnit.MILLISECONDS),
            "autoscale.pressure_clear_to_ready_target_ms": (figures.clear_to_ready_ms, MetricUnit.MILLISECONDS),
            "autoscale.safe_spare_limiting_utilization_pct": (spare_pct, MetricUnit.PERCENT),
            "host.cpu.stall": (status.measured.cpu_stall_pct, MetricUnit.PERCENT),
            "host.io.stall": (status.measured.io_stall_pct, MetricUnit.PERCENT),
            "queue.waiting": (line.waiting, MetricUnit.COUNT),
            "queue.admitted_at_once": (line.admitted_at_once, MetricUnit.COUNT),
            "queue.admitted_after_waiting": (line.admitted_after_waiting, MetricUnit.COUNT),
            "queue.left": (line.left, MetricUnit.COUNT),
            "queue.waited": (line.waited_ms, MetricUnit.MILLISECONDS),
            "launches.running": (status.launching, MetricUnit.COUNT),
            "launches.waiting": (status.launches_waiting, MetricUnit.COUNT),
            **{
                f"queue.rejected.{reason.value}": (line.rejected.get(reason, 0), MetricUnit.COUNT)
                for reason in RejectReason
            },
        }
        return {name: (value, unit) for name, (value, unit) in known.items() if value is not None}

    async def _of_templates(self) -> dict[str, tuple[int | float, MetricUnit]]:
        ready = [info for info in await self._node.templates.list() if info.state is TemplateState.READY]
        return {"templates.ready": (len(ready), MetricUnit.COUNT)}


def _said(guest: Mapping[str, Any], key: str, otherwise: int) -> int:
    value = guest.get(key)
    return value if isinstance(value, int) and value >= 0 else otherwise
