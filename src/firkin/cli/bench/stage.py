"""Where a benchmark runs: the server, how to reach it, and how much to do.

Without --url the server is a `firkin serve` of the benchmark's own, on a state
folder of its own, killed with everything in it at the end.
"""

from __future__ import annotations

import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import IO

from firkin.bootstrap.state_files import read_server_record
from firkin.cli.discovery import ServerAddress
from firkin.cli.failures import CommandFailure

ISOLATION: Mapping[str, str] = MappingProxyType(
    {
        "namespaces": "own namespaces, mapped root, seccomp, cgroup and disk limits; shared kernel",
        "memory": "none: simulated in the server's own process",
    }
)
_READY = "firkin ready: "
_READY_WITHIN_S = 60.0
_END_WITHIN_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Amounts:
    """How often each thing is done; 0 leaves a scenario out. `dirty` is in megabytes."""

    n: int = 100
    batch: int = 100
    burst: int = 100
    idle: int = 200
    alive: int = 0
    cycles: int = 0
    dirty: int = 500


QUICK = Amounts(n=5, batch=10, burst=10, idle=10, alive=0, cycles=10, dirty=10)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    address: ServerAddress
    template: str
    amounts: Amounts
    isolation: str
    state_dir: Path | None = None

    def point_sdk_here(self) -> None:
        """The official SDK reads where to go from the environment; of this process only."""
        os.environ.update(
            E2B_API_URL=self.address.url,
            E2B_SANDBOX_URL=self.address.url,
            E2B_API_KEY=self.address.api_key,
            E2B_VALIDATE_API_KEY="false",
        )


def isolation_of(driver: str) -> str:
    return ISOLATION.get(driver, f"driver {driver or 'unknown'}")


@contextmanager
def own_server(driver: str | None) -> Iterator[tuple[ServerAddress, Path]]:
    """A fresh server on a free port for the length of a block."""
    folder = Path(tempfile.mkdtemp(prefix="firkin-bench-"))
    argv = [sys.executable, "-m", "firkin.cli.main", "serve", "--port", "0", "--state-dir", str(folder / "state")]
    argv += ["--kill-on-exit", "--log-level", "warning", *(["--driver", driver] if driver else [])]
    try:
        with (folder / "server.log").open("wb") as log:
            server = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=log, env=_unlimited(), text=True)
        try:
            _await_ready(server, folder / "server.log")
            yield _address(folder / "state"), folder / "state"
        finally:
            _end(server)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _unlimited() -> dict[str, str]:
    """Our environment without settings meant for another server."""
    return {name: value for name, value in os.environ.items() if not name.startswith("FIRKIN_")}


def _await_ready(server: subprocess.Popen[str], log: Path) -> None:
    assert server.stdout is not None  # it was asked for
    line = _line_within(server.stdout, _READY_WITHIN_S)
    if not line.startswith(_READY):
        said = log.read_text(errors="replace").strip().splitlines()
        raise CommandFailure(f"the benchmark's own server did not start: {said[-1] if said else 'it said nothing'}")


def _line_within(stream: IO[str], within_s: float) -> str:
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        return stream.readline() if selector.select(within_s) else ""


def _address(state_dir: Path) -> ServerAddress:
    record = read_server_record(state_dir)
    if record is None:
        raise CommandFailure(f"the benchmark's own server left no record in {state_dir}: {os.listdir(state_dir)}")
    return ServerAddress(
        url=record.url, api_key=record.api_key, pid=record.pid, driver=record.driver, domain=record.domain
    )


def _end(server: subprocess.Popen[str]) -> None:
    server.send_signal(signal.SIGTERM)
    try:
        server.wait(_END_WITHIN_S)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait(_END_WITHIN_S)
    if server.stdout is not None:
        server.stdout.close()


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    cpu = next(
        (line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "unknown"
    )
    release = os.uname()
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_mb": meminfo("MemTotal") // 1024,
        "kernel": release.release,
        "architecture": release.machine,
        "python": sys.version.split()[0],
        "load": os.getloadavg()[0],
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def meminfo(name: str) -> int:
    """A figure of /proc/meminfo, in KiB."""
    return next((int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith(f"{name}:")), 0)


def resident_kb(pid: int) -> int:
    """Resident memory of a process, in KiB; 0 when it is gone."""
    return next((int(line.split()[1]) for line in _lines(f"/proc/{pid}/status") if line.startswith("VmRSS:")), 0)


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(errors="replace").splitlines()
    except OSError:
        return []


def to_json(value: object) -> str:
    return json.dumps(value, indent=1, default=str)
