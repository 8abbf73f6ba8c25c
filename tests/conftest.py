"""What every test shares: the proof that nothing was left behind on the host."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from firkin.drivers.ground.leases import BLOCK
from firkin.drivers.ground.numbers import SlotNumbers
from firkin.host.roots import HostRootPreparer
from firkin.host.volume_disks import FIRST_LOOP, LOOPS
from firkin.law.driver import PreparedRoot
from firkin.law.templates import TemplateSpec

_PATIENCE_S = 15.0


def _mounts() -> set[str]:
    return {line.split(" - ")[0].split(" ", 3)[3] for line in Path("/proc/self/mountinfo").read_text().splitlines()}


def _others() -> tuple[set[str], set[int]]:
    """Labels and slots of servers that run beside the tests: what they do is their own business."""
    labels: set[str] = set()
    slots: set[int] = set()
    for lease in Path("/run/firkin/slots").glob("*.json"):
        try:
            with lease.open() as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            labels.add(json.loads(lease.read_text() or "{}").get("label", ""))
            slots.update(range(int(lease.stem) * BLOCK, (int(lease.stem) + 1) * BLOCK))
        except FileNotFoundError:
            continue
    return labels, slots


def _cgroups() -> set[str]:
    trees = [Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").iterdir()]
    servers = [server for tree in trees for server in _folders(tree / "firkin")]
    labels, _ = _others()
    return {str(box) for server in servers if _label(server.name) not in labels for box in _folders(server)}


def _label(name: str) -> str:
    """Of the server: each of its drivers adds a word of its own."""
    return name.partition("-")[0]


def _folders(path: Path) -> list[Path]:
    try:
        return [entry for entry in path.iterdir() if entry.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _interfaces() -> set[str]:
    _, slots = _others()
    return {
        name
        for name in os.listdir("/sys/class/net")
        if name.startswith("fk") and not (name[2:].isdigit() and int(name[2:]) in slots)
    }


def _bound_loops() -> set[str]:
    _, slots = _others()
    foreign = {f"loop{SlotNumbers(slot).loop}" for slot in slots}
    return {
        name
        for name in os.listdir("/sys/block")
        if name.startswith("loop")
        and name not in foreign
        and not FIRST_LOOP <= int(name.removeprefix("loop")) < FIRST_LOOP + LOOPS
        and os.path.exists(f"/sys/block/{name}/loop/backing_file")
    }


def _bound_volumes(below: str) -> set[str]:
    """Loop devices of volumes belong to no slot: what is bound to them tells whose they are."""
    found = set()
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        with suppress(OSError):
            image = path.read_text().strip()
            if image.startswith(below):
                found.add(f"{path.parts[3]} {image}")
    return found


def _processes() -> set[str]:
    """Ours, everything below us, and every agent that no other server owns."""
    labels, _ = _others()
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
    return {f"{pid} {name}" for pid, name in names.items() if _is_ours(pid, name, parents, labels)}


def _is_ours(pid: int, name: str, parents: dict[int, int], labels: set[str]) -> bool:
    ancestor = parents[pid]
    while ancestor > 1 and ancestor != os.getpid():
        ancestor = parents.get(ancestor, 0)
    if ancestor == os.getpid():
        return True
    try:
        groups = Path(f"/proc/{pid}/cgroup").read_text()
    except OSError:
        return False
    if parents[pid] <= 1 and b"/pytest-of-" in _arguments(pid):
        return True  # an orphan of a test
    ours = name.startswith(("firkin-agent", "runsc", "exe")) and "/firkin/" in groups
    return ours and not any(f"/firkin/{one}" in groups for one in labels if one)


def _arguments(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _temporary_files() -> set[str]:
    return {name for name in os.listdir("/tmp") if name.startswith(("firkin", "runsc"))}


def _sockets() -> set[str]:
    labels, _ = _others()
    paths = Path("/run/firkin").glob("*/*") if Path("/run/firkin").exists() else []
    return {str(path) for path in paths if path.parent.name != "slots" and _label(path.parent.name) not in labels}


_CENSUS = {
    "mounts": _mounts,
    "control groups": _cgroups,
    "network interfaces": _interfaces,
    "loop devices": _bound_loops,
    "processes": _processes,
    "temporary files": _temporary_files,
    "sockets": _sockets,
}


_Census = dict[str, Callable[[], set[str]]]


def _more_than(before: dict[str, set[str]], census: _Census) -> dict[str, list[str]]:
    now = {what: count() - before[what] for what, count in census.items()}
    return {what: sorted(more) for what, more in now.items() if more}


class _Leftovers:
    """Compares the host before the first and after the last test; kernel clean-up gets a few seconds.

    Of several processes that share the tests, only the one that started the others looks.
    """

    def __init__(self, below: str) -> None:
        self._census: _Census = {**_CENSUS, "volumes": lambda: _bound_volumes(below)}
        self._before = {what: count() for what, count in self._census.items()}
        self._left: dict[str, list[str]] = {}

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while (left := _more_than(self._before, self._census)) and time.monotonic() < deadline:
            time.sleep(0.1)
        if left:
            self._left = left
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for what, names in self._left.items():
            terminalreporter.write_line(f"the tests left behind: {what}: {names}", red=True)


def pytest_sessionstart(session: pytest.Session) -> None:
    if not hasattr(session.config, "workerinput"):
        below = f"{session.config._tmp_path_factory.getbasetemp()}/"  # type: ignore[attr-defined]
        session.config.pluginmanager.register(_Leftovers(below), "leftovers")


@pytest.fixture(scope="session")
def host_root(tmp_path_factory: pytest.TempPathFactory) -> PreparedRoot:
    """The files of this machine's own programs as a template's, for whoever only boots from them."""
    into = tmp_path_factory.mktemp("host-root")
    return asyncio.run(HostRootPreparer().prepare(TemplateSpec.host(), into, lambda _line: None))
