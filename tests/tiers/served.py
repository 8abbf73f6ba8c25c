"""A real server with every tier of this machine, as a process that can be killed and started again on its state."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from firkin.bootstrap.state_files import read_server_record, server_secret
from firkin.drivers.boxes.host_checks import check
from firkin.e2b.isolation_reports import ISOLATION_HEADER
from firkin.e2b.operators import OPERATOR_HEADER, operator_token

TIERS = ("microvm", "gvisor", "oci")
"""Beside the server's default, which has tests of its own."""
READINESS = check(Path("/var/tmp"))
_READY = "firkin ready: http://127.0.0.1:"
_CONFIG = "sandbox_vcpus = 1\nsandbox_memory_mb = 256\nsandbox_disk_mb = 96\nmemory_floor_mb = 64\ndisk_floor_mb = 64\n"


@dataclass
class Served:
    """`options` are the drivers'. The port stays the same over restarts, so what clients hold stays good."""

    state: Path
    options: tuple[str, ...]
    port: int = 0
    process: subprocess.Popen[str] | None = None
    statuses: dict[str, dict[str, Any]] = field(default_factory=dict)

    def start(self) -> None:
        self.state.mkdir(exist_ok=True)
        (self.state / "config.toml").write_text(_CONFIG)
        argv = [*self._command("serve"), "--port", str(self.port)]
        argv += [word for option in self.options for word in ("--driver-option", option)]
        with (self.state.parent / "server.log").open("a") as log:
            self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=log, text=True, env=_environment())
        assert self.process.stdout is not None
        assert select.select([self.process.stdout], [], [], 60)[0], "the server did not get ready"
        line = self.process.stdout.readline().strip()
        assert line.startswith(_READY), (line, (self.state.parent / "server.log").read_text())
        self.port = int(line.removeprefix(_READY).rstrip("/"))

    def end(self, number: int = signal.SIGTERM) -> None:
        if self.process is not None and self.process.stdout is not None:
            self.process.send_signal(number)
            self.process.wait(60)
            self.process.stdout.close()
        self.process = None

    def firkin(self, *words: str) -> str:
        """A command on this state; what it said."""
        argv = self._command(*words)
        done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False, env=_environment())
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def sdk(self, tier: str = "") -> dict[str, Any]:
        """The options that point the official SDK here, with a wish for a tier."""
        record = read_server_record(self.state)
        assert record is not None
        wish = {"headers": {ISOLATION_HEADER: tier}} if tier else {}
        return {"api_key": record.api_key, "api_url": record.url, "sandbox_url": record.url, **wish}

    def http(self) -> httpx.Client:
        """An operator."""
        headers = {
            "X-API-Key": self.sdk()["api_key"],
            OPERATOR_HEADER: operator_token(server_secret(self.state)),
        }
        return httpx.Client(base_url=self.sdk()["api_url"], headers=headers, timeout=60)

    def lacking(self, tier: str) -> str:
        """Why this machine cannot do it, in its own words; nothing where it can."""
        if not self.statuses:
            with self.http() as http:
                self.statuses = {each["isolation"]: each for each in http.get("/firkin/v1/tiers").json()}
        status = self.statuses[tier]
        return "" if status["ready"] else "; ".join(status["reasons"]) or "not ready"

    def _command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "firkin.cli.main", words[0], *words[1:], "--state-dir", str(self.state)]


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("FIRKIN_", "E2B_"))}
