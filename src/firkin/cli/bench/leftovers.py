"""What a sandbox could leave behind on the machine, counted before and after.

Counts are of the whole machine where the kernel has only one table, and of the
server's own process tree and state folder where they can be told apart.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from firkin.cli.bench.machine import resident_kb, unused_kb
from firkin.cli.bench.raw_http import RawCaller
from firkin.cli.bench.samples import Lifecycle, Series
from firkin.cli.bench.stage import Stage
from firkin.cli.failures import CommandFailure

_SETTLE_WITHIN_S = 15.0
_STEADY_S = 1.0
_WARM_UP = 20
_EARLY = 500  # cycles, after which the server's memory should not grow any more


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
    failures = 0
    async with RawCaller(stage) as caller:
        for _ in range(min(_WARM_UP, stage.amounts.cycles)):
            await _cycle(caller)
        before, memory = await _steady(stage), unused_kb()
        resident: list[float] = []
        began = time.perf_counter()
        for number in range(stage.amounts.cycles):
            try:
                await _cycle(caller)
            except CommandFailure:
                failures += 1
            if number + 1 in (_EARLY, stage.amounts.cycles):
                resident.append(_resident(stage))
        wall_s = time.perf_counter() - began
        left = await _settled(stage, before)
    fell_kb = memory - unused_kb()
    note = f"{stage.amounts.cycles} cycles in {wall_s:.1f} s; unused memory of the machine fell by {fell_kb} KiB"
    return [_leftover_series(stage, left, note, failures), *_growth(stage, resident)]


def _resident(stage: Stage) -> float:
    return resident_kb(stage.address.pid) / 1024 if stage.address.pid is not None else 0.0


def _growth(stage: Stage, resident: Sequence[float]) -> list[Series]:
    """The server's memory at the end over that after the first cycles; nothing for a run too short to tell."""
    if len(resident) < 2 or not resident[0]:
        return []
    what = f"resident memory of the server's process after {stage.amounts.cycles} cycles over that after {_EARLY}"
    note = f"{resident[0]:.1f} MB, then {resident[1]:.1f} MB"
    values = [resident[1] / resident[0]]
    return [stage.series("cleanup.server_memory_ratio", values, Lifecycle.CLEANUP, what, unit="ratio", note=note)]


def _leftover_series(stage: Stage, left: Mapping[str, int], note: str, failures: int) -> Series:
    return stage.series(
        "cleanup.leftovers",
        [float(sum(left.values()))],
        Lifecycle.CLEANUP,
        "mounts, cgroups, namespaces, loop devices, processes, descriptors and files beyond those before",
        unit="things",
        events="CleanupStart → CleanupDone",
        failures=failures,
        note=f"{note}; {', '.join(f'{name} +{count}' for name, count in left.items()) or 'nothing left'}",
    )


async def _cycle(caller: RawCaller) -> None:
    inside, _ = await caller.create()
    await caller.echo(inside)
    await caller.kill(inside)


async def _steady(stage: Stage) -> dict[str, int]:
    """The counts once they do not change: a server makes parts ahead of need, and more of them when it is used."""
    until = time.monotonic() + _SETTLE_WITHIN_S
    before: dict[str, int] = {}
    now = _count(stage)
    while before != now and time.monotonic() < until:
        await asyncio.sleep(_STEADY_S)
        before, now = now, _count(stage)
    return now


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
