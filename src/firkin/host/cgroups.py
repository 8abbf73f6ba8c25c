"""Control groups: limits, counters, freezing and the list of who belongs to a sandbox.

One sandbox has a *box*, which carries the limits, and where processes and
memory are counted two leaves inside it: ``agent`` (PID 1) and ``user``
(everything else), so that a fork bomb or a memory hog starves itself and not
the agent. Memory of version 1 needs no leaf for the agent, which is alone in
the box itself: a group more is up to 250 KB of the kernel's memory, on a host
that has mounted many file systems. (An OCI runtime makes one all the same.)

Version 1 has a tree for each controller; a process joins by writing ``0`` to
``tasks``, which costs 0.1 ms for a single-threaded writer where ``cgroup.procs``
waits for an RCU period. Version 2 has one tree. `Trees` hides the difference
and works on directory descriptors, so that a launcher without a view of
/sys/fs/cgroup can use it.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any  # the JSON of `Layout.as_object`

from firkin.host.cgroup_files import attempt, fields, number, read, write

AGENT_RESERVE_BYTES = 24 * 1024 * 1024
AGENT_RESERVE_PIDS = 8
_CPU_PERIOD_US = 100_000

V1_CONTROLLERS = ("memory", "pids", "cpu", "cpuacct", "freezer")
_SPLIT = ("memory", "pids")
_AGENTS = ("pids",)  # of version 1: where the agent has a leaf


Doors = tuple[tuple[int, ...], tuple[int, ...]]
"""Open files: writing ``0`` to the first ones moves the writer to the users' leaf, to the second ones back."""


class Limits:
    """What a box may use."""

    __slots__ = ("memory_bytes", "pids", "vcpus")

    def __init__(self, memory_bytes: int, pids: int, vcpus: int) -> None:
        self.memory_bytes = memory_bytes
        self.pids = pids
        self.vcpus = vcpus

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Limits) and _facts(self) == _facts(other)

    def __hash__(self) -> int:
        return hash(_facts(self))


class Layout:
    """Where this machine keeps its trees. `version` 1 or 2; `roots` maps a controller to a mount point."""

    __slots__ = ("controllers", "roots", "version")

    def __init__(self, version: int, roots: dict[str, str], controllers: frozenset[str]) -> None:
        self.version = version
        self.roots = roots
        self.controllers = controllers

    @property
    def can_freeze(self) -> bool:
        """Version 2 has a freezer of its own, since Linux 5.2; version 1 has a controller for it."""
        return self.version == 2 or "freezer" in self.controllers

    def as_object(self) -> dict[str, object]:
        """Plain data, for another process of ours."""
        return {"version": self.version, "roots": self.roots, "controllers": sorted(self.controllers)}

    @classmethod
    def from_object(cls, plain: dict[str, Any]) -> Layout:
        return cls(plain["version"], plain["roots"], frozenset(plain["controllers"]))


def _facts(limits: Limits) -> tuple[int, int, int]:
    return limits.memory_bytes, limits.pids, limits.vcpus


def detect() -> Layout:
    """Read from /proc/self/mountinfo what is mounted. A pure version 2 host has the tree ``""`` only."""
    v1: dict[str, str] = {}
    v2 = ""
    with open("/proc/self/mountinfo") as file:
        for line in file:
            left, _, right = line.partition(" - ")
            kind, _, options = right.partition(" ")
            point = left.split()[4]
            if kind == "cgroup2":
                v2 = v2 or point
            elif kind == "cgroup":
                for option in options.split()[-1].split(","):
                    if option in V1_CONTROLLERS:
                        v1.setdefault(option, point)
    if v1:
        return Layout(1, v1, frozenset(v1))
    if not v2:
        return Layout(0, {}, frozenset())
    with open(f"{v2}/cgroup.controllers") as file:
        return Layout(2, {"": v2}, frozenset(file.read().split()))


def every_tree() -> Layout:
    """As `detect`, with the trees in it that limit nothing of ours too: an OCI runtime puts its containers in all."""
    layout = detect()
    if layout.version != 1:
        return layout
    roots = dict(layout.roots)
    with open("/proc/self/mountinfo") as file:
        for line in file:
            left, _, right = line.partition(" - ")
            point = left.split()[4]
            if right.startswith("cgroup") and point not in roots.values():
                roots[point.rpartition("/")[2]] = point
    return Layout(1, roots, layout.controllers)


class Trees:
    """The boxes of one server: a directory ``firkin/<label>`` in each tree, held open.

    `make` and `join` run in the launcher's child; the rest in the server.
    """

    def __init__(self, layout: Layout, label: str) -> None:
        self.layout = layout
        self.label = label
        self._folders: dict[str, int] = {}

    def open(self) -> None:
        """Make the server's own directories where they are missing and open them."""
        for name, root in self.layout.roots.items():
            if self.layout.version == 2:
                _delegate(root, self.layout.controllers)
                os.makedirs(f"{root}/firkin", exist_ok=True)
                _delegate(f"{root}/firkin", self.layout.controllers)
            path = f"{root}/firkin/{self.label}"
            os.makedirs(path, exist_ok=True)
            if self.layout.version == 2:
                _delegate(path, self.layout.controllers)
            self._folders[name] = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def close(self) -> None:
        for fd in self._folders.values():
            os.close(fd)
        self._folders.clear()

    def remove_if_empty(self) -> None:
        """Remove the server's own directories; those with sandboxes in them stay."""
        for root in set(self.layout.roots.values()):
            for path in (f"{root}/firkin/{self.label}", f"{root}/firkin"):
                try:
                    os.rmdir(path)
                except OSError:
                    break

    # In the launcher's child, before it gives up its rights.

    def make(self, box: str, limits: Limits) -> None:
        if self.layout.version == 2:
            self._make_v2(box, limits)
            return
        for name, folder in self._trees():
            os.mkdir(box, 0o755, dir_fd=folder)
            for leaf in ("agent",) * (name in _AGENTS) + ("user",) * (name in _SPLIT):
                os.mkdir(f"{box}/{leaf}", 0o755, dir_fd=folder)
            for path, value in _settings_v1(name, limits):
                _write_optional(folder, f"{box}/{path}", value)

    def _make_v2(self, box: str, limits: Limits) -> None:
        folder = self._folders[""]
        os.mkdir(box, 0o755, dir_fd=folder)
        for path, value in _settings_v2(limits, self.layout.controllers, leaf=False):
            _write_optional(folder, f"{box}/{path}", value)
        for name in ("memory", "pids"):
            if name in self.layout.controllers:
                write(folder, f"{box}/cgroup.subtree_control", f"+{name}")
        for leaf in ("agent", "user"):
            os.mkdir(f"{box}/{leaf}", 0o755, dir_fd=folder)
        for path, value in _settings_v2(limits, self.layout.controllers, leaf=True):
            _write_optional(folder, f"{box}/user/{path}", value)

    def join_box(self, box: str) -> None:
        """Move the calling process into the box (version 2 allows no process there: into the agent's leaf)."""
        if self.layout.version == 2:
            write(self._folders[""], f"{box}/agent/cgroup.procs", "0")
            return
        for _, folder in self._trees():
            write(folder, f"{box}/tasks", "0")

    def join_agent(self, box: str) -> None:
        """Move the calling process to the agent's leaf."""
        if self.layout.version == 1:
            for name, folder in self._trees():
                if name in _AGENTS:
                    write(folder, f"{box}/agent/tasks", "0")

    def leave(self, box: str) -> None:
        """Take the calling process out of the box and remove that, where that can be done (not on version 2)."""
        if self.layout.version == 1:
            with suppress(OSError):
                for _, folder in self._trees():
                    write(folder, "tasks", "0")
            self.remove(box)

    def doors(self, box: str) -> Doors:
        enter: list[int] = []
        leave: list[int] = []
        for name, folder in self._trees():
            if self.layout.version == 2 or name in _SPLIT:
                file = "cgroup.procs" if self.layout.version == 2 else "tasks"
                agents = "/agent" if self.layout.version == 2 or name in _AGENTS else ""
                for leaf, doors in (("/user", enter), (agents, leave)):
                    doors.append(os.open(f"{box}{leaf}/{file}", os.O_WRONLY | os.O_CLOEXEC, dir_fd=folder))
        return tuple(enter), tuple(leave)

    # In the server.

    def boxes(self) -> set[str]:
        """Every box that exists in any tree."""
        found: set[str] = set()
        for _, folder in self._trees():
            with os.scandir(folder) as entries:
                found.update(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
        return found

    def members(self, box: str) -> set[int]:
        """Process ids, as the host counts them, in any leaf of `box`."""
        found: set[int] = set()
        for _, folder in self._trees():
            for leaf in ("", "/agent", "/user"):
                text = read(folder, f"{box}{leaf}/cgroup.procs")
                found.update(int(word) for word in text.split())
        return found

    def remove(self, box: str) -> bool:
        """Remove the box's directories. False when something still lives in one of them."""
        gone = True
        for _, folder in self._trees():
            for path in (f"{box}/agent", f"{box}/user", box):
                try:
                    os.rmdir(path, dir_fd=folder)
                except FileNotFoundError:
                    continue
                except OSError:
                    gone = False
        return gone

    def resize(self, box: str, limits: Limits) -> list[str]:
        """Put other limits in force; what of them does not hold then, as `unmet` says it.

        Memory and memory with swap bound each other: the order in which they can be
        written depends on whether they grow or shrink, so the second round meets what the first could not.
        """
        for _ in range(2):
            for name, folder in self._trees():
                for path, value in _settings(self.layout, name, limits):
                    attempt(folder, f"{box}/{path}", value)
        return self.unmet(box, limits)

    def freeze(self, box: str, frozen: bool) -> None:
        if self.layout.version == 2:
            write(self._folders[""], f"{box}/cgroup.freeze", "1" if frozen else "0")
            return
        write(self._folders["freezer"], f"{box}/freezer.state", "FROZEN" if frozen else "THAWED")

    def is_frozen(self, box: str) -> bool:
        if self.layout.version == 2:
            return "frozen 1" in read(self._folders[""], f"{box}/cgroup.events")
        return read(self._folders["freezer"], f"{box}/freezer.state").strip() == "FROZEN"

    def lift_cpu_quota(self, box: str) -> None:
        """Let what was killed die at once.

        Since Linux 6.17 a task is throttled on its way back to user space only, so a fork
        bomb runs far past its quota inside the kernel; the box then owes seconds or minutes
        of CPU time, and until they have passed nothing in it runs, not even to its end.
        """
        if self.layout.version == 2:
            attempt(self._folders[""], f"{box}/cpu.max", f"max {_CPU_PERIOD_US}")
        else:
            attempt(self._folders.get("cpu", -1), f"{box}/cpu.cfs_quota_us", "-1")

    def allow_swap(self, box: str) -> None:
        """Let a frozen box be pushed out to swap, until `forbid_swap`."""
        if self.layout.version == 2:
            for path in (box, *(f"{box}{leaf}" for leaf in _LEAVES[1:])):
                attempt(self._folders[""], f"{path}/memory.swap.max", "max")
            return
        for path in (box, f"{box}/user"):
            attempt(self._folders.get("memory", -1), f"{path}/memory.memsw.limit_in_bytes", "-1")

    def reclaiming(self, box: str) -> tuple[str, tuple[str, ...]]:
        """What to write into which files, in this order, to push a frozen box's memory out.

        The kernel takes as much as it can, which may last seconds, and complains when
        that was not all.
        """
        if self.layout.version == 2:
            folder = f"{self.layout.roots['']}/firkin/{self.label}/{box}"
            return read(self._folders[""], f"{box}/memory.current").strip() or "0", (f"{folder}/memory.reclaim",)
        folder = f"{self.layout.roots['memory']}/firkin/{self.label}/{box}"
        there = [leaf for leaf in ("/user", "/agent", "") if os.path.exists(f"{folder}{leaf}")]
        return "0", tuple(f"{folder}{leaf}/memory.force_empty" for leaf in there)

    def forbid_swap(self, box: str) -> None:
        """Back to the limits of a running box. What is in swap comes back when it is touched."""
        if self.layout.version == 2:
            for path in (box, f"{box}/user", f"{box}/agent"):
                attempt(self._folders[""], f"{path}/memory.swap.max", "0")
            return
        folder = self._folders.get("memory", -1)
        for path in (f"{box}/user", box):
            attempt(
                folder, f"{path}/memory.memsw.limit_in_bytes", read(folder, f"{path}/memory.limit_in_bytes").strip()
            )

    def usage(self, box: str) -> dict[str, int]:
        """``cpu_us``, ``memory_bytes``, ``memory_cache_bytes``, ``memory_peak_bytes``, ``oom_kills``.

        0 where there is no counter.
        """
        if self.layout.version == 2:
            return self._usage_v2(box)
        memory = self._folders.get("memory", -1)
        stat = fields(read(memory, f"{box}/memory.stat"))
        kills = sum(fields(read(memory, f"{box}{leaf}/memory.oom_control")).get("oom_kill", 0) for leaf in _LEAVES)
        spent = read(self._folders.get("cpuacct", -1), f"{box}/cpuacct.usage").strip()
        return {
            "cpu_us": int(spent or 0) // 1000,
            "memory_bytes": number(read(memory, f"{box}/memory.usage_in_bytes")),
            "memory_cache_bytes": stat.get("total_cache", 0),
            "memory_peak_bytes": number(read(memory, f"{box}/memory.max_usage_in_bytes")),
            "oom_kills": kills,
        }

    def limits(self, box: str) -> dict[str, str]:
        """The files that say what the box may use, as they read now; what this machine does not have is left out."""
        found: dict[str, str] = {}
        for _, folder in self._trees():
            for name in (f"{leaf}{file}" for file in _LIMITS for leaf in ("", "user/")):
                if text := read(folder, f"{box}/{name}").strip():
                    found.setdefault(name, text)
        return found

    def unmet(self, box: str, limits: Limits) -> list[str]:
        """Which of `limits` do not hold, whatever was written and by whom: each with what the kernel says."""
        found = []
        for name, folder in self._trees():
            for path, wanted in _settings(self.layout, name, limits):
                holds = read(folder, f"{box}/{path}").strip()
                if holds != wanted and not _same_size(holds, wanted) and not (path.endswith(_OPTIONAL) and not holds):
                    found.append(f"{path} is {holds or 'absent'}, not {wanted}")
        return found

    def holds(self, box: str, pid: int) -> bool:
        """Whether the process is in the agent's leaf wherever there is one, and nowhere outside of the box."""
        return all(
            any(str(pid) in read(folder, f"{box}{leaf}/cgroup.procs").split() for leaf in leaves)
            for name, folder in self._trees()
            for leaves in [("/agent",) if self.layout.version == 2 or name in _AGENTS else ("", "/agent")]
        )

    def agent_oom_kills(self, box: str) -> int:
        """How often the kernel's OOM killer chose among the agent's own group: 0 or 1, for it is alone there.

        Version 1 counts in each group what was killed in that group alone (memcontrol.h, memcg_memory_event).
        """
        if self.layout.version == 2:
            return fields(read(self._folders[""], f"{box}/agent/memory.events.local")).get("oom_kill", 0)
        folder = self._folders.get("memory", -1)
        said = (fields(read(folder, f"{box}{leaf}/memory.oom_control")) for leaf in ("", "/agent"))
        return sum(group.get("oom_kill", 0) for group in said)

    def _usage_v2(self, box: str) -> dict[str, int]:
        folder = self._folders[""]
        return {
            "cpu_us": fields(read(folder, f"{box}/cpu.stat")).get("usage_usec", 0),
            "memory_bytes": number(read(folder, f"{box}/memory.current")),
            "memory_cache_bytes": fields(read(folder, f"{box}/memory.stat")).get("file", 0),
            "memory_peak_bytes": number(read(folder, f"{box}/memory.peak")),
            "oom_kills": fields(read(folder, f"{box}/memory.events")).get("oom_kill", 0),
        }

    def _trees(self) -> list[tuple[str, int]]:
        """One entry for each distinct directory: version 1 may mount cpu and cpuacct together."""
        seen: dict[str, tuple[str, int]] = {}
        for name, folder in self._folders.items():
            seen.setdefault(self.layout.roots[name], (name, folder))
        return list(seen.values())


_LEAVES = ("", "/agent", "/user")
_LIMITS = (
    "memory.max",
    "memory.swap.max",
    "memory.limit_in_bytes",
    "memory.memsw.limit_in_bytes",
    "pids.max",
    "cpu.max",
    "cpu.cfs_period_us",
    "cpu.cfs_quota_us",
)
_OPTIONAL = ("memory.memsw.limit_in_bytes", "memory.swap.max", "memory.kmem.tcp.limit_in_bytes")


def _settings(layout: Layout, controller: str, limits: Limits) -> list[tuple[str, str]]:
    if layout.version == 1:
        return _settings_v1(controller, limits)
    whole = _settings_v2(limits, layout.controllers, leaf=False)
    return whole + [(f"user/{path}", value) for path, value in _settings_v2(limits, layout.controllers, leaf=True)]


def _same_size(holds: str, wanted: str) -> bool:
    """The kernel counts memory in pages."""
    pages = os.sysconf("SC_PAGE_SIZE")
    return holds.isdigit() and wanted.isdigit() and int(holds) // pages == int(wanted) // pages > 0


def _settings_v1(controller: str, limits: Limits) -> list[tuple[str, str]]:
    whole = str(limits.memory_bytes + AGENT_RESERVE_BYTES)
    user = str(limits.memory_bytes)
    match controller:
        case "memory":
            return [
                ("memory.limit_in_bytes", whole),
                ("memory.memsw.limit_in_bytes", whole),
                ("user/memory.limit_in_bytes", user),
                ("user/memory.memsw.limit_in_bytes", user),
                ("user/memory.kmem.tcp.limit_in_bytes", str(limits.memory_bytes // 4)),
            ]
        case "pids":
            return [("pids.max", str(limits.pids + AGENT_RESERVE_PIDS)), ("user/pids.max", str(limits.pids))]
        case "cpu":
            return [
                ("cpu.cfs_period_us", str(_CPU_PERIOD_US)),
                ("cpu.cfs_quota_us", str(limits.vcpus * _CPU_PERIOD_US)),
            ]
    return []


def _settings_v2(limits: Limits, controllers: frozenset[str], *, leaf: bool) -> list[tuple[str, str]]:
    memory = limits.memory_bytes if leaf else limits.memory_bytes + AGENT_RESERVE_BYTES
    pids = limits.pids if leaf else limits.pids + AGENT_RESERVE_PIDS
    settings = []
    if "memory" in controllers:
        settings += [("memory.max", str(memory)), ("memory.swap.max", "0")]
    if "pids" in controllers:
        settings.append(("pids.max", str(pids)))
    if "cpu" in controllers and not leaf:
        settings.append(("cpu.max", f"{limits.vcpus * _CPU_PERIOD_US} {_CPU_PERIOD_US}"))
    return settings


def _delegate(path: str, controllers: frozenset[str]) -> None:
    for name in ("memory", "pids", "cpu"):
        if name in controllers:
            try:
                with open(f"{path}/cgroup.subtree_control", "w") as file:
                    file.write(f"+{name}")
            except OSError:
                continue  # what is missing shows up as an unenforced limit and is reported by the probe


def _write_optional(folder: int, path: str, value: str) -> None:
    """Write where the kernel has the file: swap accounting, for one, may be built out."""
    try:
        write(folder, path, value)
    except FileNotFoundError:
        if not path.endswith(_OPTIONAL):
            raise
