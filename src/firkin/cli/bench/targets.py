"""What Firkin wants to reach on a machine with 2 cores, by tier of isolation. A tier's figures are only its own."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from firkin.cli.bench.samples import Target


def _most(p50: float | None, p95: float | None = None) -> Target:
    return Target(p50=p50, p95=p95)


def _least(p50: float) -> Target:
    return Target(p50=p50, at_least=True)


_NAMESPACES = {
    "start.cold_to_ready_ms": _most(10, 20),
    "start.cold_to_first_stdout_ms": _most(20, 35),
    "start.agent_task_ready_ms": _most(12, 18),
    "start.direct_agent_task_ready_ms": _most(3, 5),
    "exec.direct_first_stdout_byte_ms": _most(2, 5),
    "exec.sdk_command_ms": _most(6, 12),
    "exec.batch_100_direct_ms": _most(200),
    "exec.batch_100_small_commands_ms": _most(None, 500),
    "exec.batch_100_sdk_sequential_ms": _most(800),
    "exec.stdout_mb_per_s": _least(300),
    "create.burst_100_ms": _most(800),
    "pause.memory_ms": _most(3),
    "start.resume_to_first_stdout_ms": _most(15),
    "snapshot.clean_ms": _most(30),
    "snapshot.500_mb_dirty_ms": _most(1500),
    "fork.of_10_clean_ms": _most(150),
    "memory.idle_sandbox_mb": _most(2.5),
    "server.resident_mb": _most(60),
    "server.resident_with_100_mb": _most(120),
    "server.start_ms": _most(400),
    "cli.help_ms": _most(150),
    "destroy.kill_ms": _most(6),
    "create.alive_to_none_ratio": _most(1.5),
    "cleanup.leftovers": _most(0),
    "cleanup.server_memory_ratio": _most(1.05),
    "reliability.unknown_failure_rate": _most(0),
    "proxy.requests_per_core_s": _least(3000),
    "proxy.download_mb_per_s": _least(500),
    "files.upload_mb_per_s": _least(300),
    "template.image_cold_ms": _most(8000),
    "template.image_cached_ms": _most(50),
    "build.changed_last_step_ms": _most(2000),
}

_MICROVM = {
    "start.cold_to_ready_ms": _most(60, 120),
    "start.cold_to_first_stdout_ms": _most(150, 300),
    "start.agent_task_ready_ms": _most(30, 60),
    "exec.direct_first_stdout_byte_ms": _most(80, 160),
    "fork.of_10_clean_ms": _most(800),
    "memory.idle_sandbox_mb": _most(30),
    "cleanup.leftovers": _most(0),
    "reliability.unknown_failure_rate": _most(0),
}

TARGETS: Mapping[str, Mapping[str, Target]] = MappingProxyType({"namespaces": _NAMESPACES, "microvm": _MICROVM})


def target_of(system: str, metric: str) -> Target | None:
    return TARGETS.get(system, {}).get(metric)
