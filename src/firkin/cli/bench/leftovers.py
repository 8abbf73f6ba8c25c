"""What a sandbox could leave behind on the machine, counted before and after.

Counts are of the whole machine where the kernel has only one table, and of the
server's own process tree and state folder where they can be told apart.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping
from pathlib import Path

from firkin.cli.bench.density import create
from firkin.cli.bench.samples import Lifecycle, Series
from firkin.cli.bench.stage import Stage, meminfo
from firkin.cli.client import ServerClient
from firkin.cli.failures import CommandFailure

_SETTLE_WITHIN_S = 15.0
_WARM_UP = 20
_START = "process.Process/Start"
_ECHO = {"process": {"cmd": "/bin/echo", "args": ["hi"]}, "stdin": False}


def count_leftovers(server_pid: int | None, state_dir: Path | None) -> dict[str, int]:
    """How many of each there are now."""
    tree = _descendants(server_pid) if server_pid is not None else set()
    counts = {
        "mounts": len(_read("/proc/self/mountinfo").splitlines()),
        "cgroups": sum(1 for _ in os.walk("/sys/fs/cgroup")),
        "network namespaces": len(_namespaces("net")),
        "user namespaces": len(_namespaces("user")),
        "loop devices in use": sum(1 for path in Path("/sys/block").glob("loop*/loop/backing_file") if path.exists()),
    }
    if server_pid is not None:
        counts["processes of the server"] = len(tree)
        counts["descriptors of the server"] = sum(_descriptors(pid) for pid in {server_pid, *tree})
    if state_dir is not None:
        counts["files in the state folder"] = sum(len(names) for _, _, names in os.walk(state_dir))
    return counts


def difference(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, int]:
    """What there is more of than before."""
    return {name: after[name] - before.get(name, 0) for name in after if after[name] > before.get(name, 0)}


async def cycles(stage: Stage) -> list[Series]:
    """Create, run one command, kill; many times. What is left is counted when the machine has settled."""
    if not stage.amounts.cycles:
        return []
    async with ServerClient(stage.address) as server:
        for _ in range(min(_WARM_UP, stage.amounts.cycles)):
            await _cycle(stage, server)
        before, memory = _count(stage), meminfo("MemAvailable")
        began = time.perf_counter()
        for _ in range(stage.amounts.cycles):
            await _cycle(stage, server)
        wall_s = time.perf_counter() - began
        left = await _settled(stage, before)
    note = (
        f"{stage.amounts.cycles} cycles in {wall_s:.1f} s; MemAvailable fell by {memory - meminfo('MemAvailable')} KiB"
    )
    return [_leftover_series(stage, left, note)]


def _leftover_series(stage: Stage, left: Mapping[str, int], note: str) -> Series:
    return Series(
        metric="cleanup.leftovers",
        values=(float(sum(left.values())),),
        unit="things",
        lifecycle=Lifecycle.CLEANUP,
        isolation=stage.isolation,
        workload="mounts, cgroups, namespaces, loop devices, processes, descriptors and files beyond those before",
        target="0",
        note=f"{note}; {', '.join(f'{name} +{count}' for name, count in left.items()) or 'nothing left'}",
    )


async def _cycle(stage: Stage, server: ServerClient) -> None:
    sandbox_id = await create(stage, server)
    ended = False
    async for message in server.stream(sandbox_id, _START, _ECHO, user=None):
        ended = ended or "end" in message.get("event", {})
    await server.call("DELETE", f"/sandboxes/{sandbox_id}")
    if not ended:
        raise CommandFailure(f"the command in sandbox {sandbox_id} did not end")


async def _settled(stage: Stage, before: Mapping[str, int]) -> dict[str, int]:
    """What is left once it does not get less, at most `_SETTLE_WITHIN_S` later."""
    until = time.monotonic() + _SETTLE_WITHIN_S
    left = difference(before, _count(stage))
    while left and time.monotonic() < until:
        await asyncio.sleep(0.5)
        left = difference(before, _count(stage))
    return left


def _count(stage: Stage) -> dict[str, int]:
    return count_leftovers(stage.address.pid, stage.state_dir)


def _namespaces(kind: str) -> set[str]:
    return {link for pid in _pids() if (link := _link(f"/proc/{pid}/ns/{kind}"))}


def _descendants(root: int) -> set[int]:
    parents = {pid: _parent(pid) for pid in _pids()}
    found: set[int] = set()
    grown = {pid for pid, parent in parents.items() if parent == root}
    while grown:
        found |= grown
        grown = {pid for pid, parent in parents.items() if parent in grown}
    return found


def _parent(pid: int) -> int:
    stat = _read(f"/proc/{pid}/stat")
    return int(stat.rpartition(")")[2].split()[1]) if ")" in stat else 0


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def _descriptors(pid: int) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""
