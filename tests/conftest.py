"""What every test shares: the proof that nothing was left behind on the host."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

_PATIENCE_S = 15.0


def _mounts() -> set[str]:
    return {line.split(" - ")[0].split(" ", 3)[3] for line in Path("/proc/self/mountinfo").read_text().splitlines()}


def _cgroups() -> set[str]:
    trees = [Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").iterdir()]
    servers = [server for tree in trees for server in _folders(tree / "firkin")]
    return {str(box) for server in servers for box in _folders(server)}


def _folders(path: Path) -> list[Path]:
    try:
        return [entry for entry in path.iterdir() if entry.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _interfaces() -> set[str]:
    return {name for name in os.listdir("/sys/class/net") if name.startswith("fk")}


def _bound_loops() -> set[str]:
    return {
        name
        for name in os.listdir("/sys/block")
        if name.startswith("loop") and os.path.exists(f"/sys/block/{name}/loop/backing_file")
    }


def _processes() -> set[str]:
    """Ours, and everything below us."""
    mine: set[str] = set()
    parents: dict[int, int] = {}
    names: dict[int, str] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                stat = Path(f"/proc/{entry}/stat").read_text()
            except OSError:
                continue
            names[int(entry)] = stat.split("(", 1)[1].rsplit(")", 1)[0]
            parents[int(entry)] = int(stat.rsplit(")", 1)[1].split()[1])
    for pid, name in names.items():
        ancestor = pid
        while ancestor > 1 and ancestor != os.getpid():
            ancestor = parents.get(ancestor, 0)
        if (ancestor == os.getpid() and pid != os.getpid()) or name.startswith("firkin-agent"):
            mine.add(f"{pid} {name}")
    return mine


def _temporary_files() -> set[str]:
    return {name for name in os.listdir("/tmp") if name.startswith("firkin")}


def _sockets() -> set[str]:
    run = Path("/run/firkin")
    return {str(path) for path in run.glob("*/*") if path.parent.name != "slots"} if run.exists() else set()


_CENSUS = {
    "mounts": _mounts,
    "control groups": _cgroups,
    "network interfaces": _interfaces,
    "loop devices": _bound_loops,
    "processes": _processes,
    "temporary files": _temporary_files,
    "sockets": _sockets,
}


def _more_than(before: dict[str, set[str]]) -> dict[str, list[str]]:
    now = {what: count() - before[what] for what, count in _CENSUS.items()}
    return {what: sorted(more) for what, more in now.items() if more}


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    """Compare the host before the first and after the last test; kernel clean-up gets a few seconds."""
    before = {what: count() for what, count in _CENSUS.items()}
    yield
    deadline = time.monotonic() + _PATIENCE_S
    while (left := _more_than(before)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left, f"the tests left behind: {left}"
