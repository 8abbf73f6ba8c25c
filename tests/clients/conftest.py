"""One server with real sandboxes, in a process of its own, and the clients that other people wrote."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from firkin.drivers.boxes.host_checks import check
from tests.cli.test_commands import firkin
from tests.clients.installing import javascript_clients, python_sdk_of_2_45, why_no_javascript

E2b = Callable[..., "subprocess.CompletedProcess[str]"]

_READY_WITHIN_S = 30
_ENDED_WITHIN_S = 30
_CLIENT_WITHIN_S = 50


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    readiness = check(Path("/var/tmp"))
    for item in items:
        if "tests/clients" in str(item.path):
            item.add_marker(pytest.mark.served)
            item.add_marker(pytest.mark.timeout(300))  # the first test may have to install the clients
            if not readiness.ready:
                item.add_marker(pytest.mark.skip(reason="; ".join(readiness.reasons)))


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment that leads a client to the server."""
    folder = tmp_path_factory.mktemp("clients")
    state, log = folder / "state", folder / "log"
    argv = [sys.executable, "-m", "firkin.cli.main", "serve", "--driver", "namespaces", "--port", "0", "--kill-on-exit"]
    env = {name: value for name, value in os.environ.items() if not name.startswith(("FIRKIN_", "E2B_"))}
    with log.open("w") as errors:
        server = subprocess.Popen(
            [*argv, "--state-dir", str(state)], stdout=subprocess.PIPE, stderr=errors, text=True, env=env
        )
    try:
        assert server.stdout is not None
        assert select.select([server.stdout], [], [], _READY_WITHIN_S)[0], log.read_text()
        assert server.stdout.readline().startswith("firkin ready: "), log.read_text()
        variables = json.loads(firkin("env", "--json", state=state).stdout)
        home = folder / "home"
        home.mkdir()
        yield {**env, **variables, "HOME": str(home), "CI": "1", "NO_UPDATE_NOTIFIER": "1"}
    finally:
        server.send_signal(signal.SIGTERM)
        server.communicate(timeout=_ENDED_WITHIN_S)
    assert server.returncode == 0, log.read_text()
    assert "level=error" not in log.read_text()


@pytest.fixture(scope="session")
def javascript() -> Path:
    """The folder with the JavaScript clients."""
    if reason := why_no_javascript():
        pytest.skip(reason)
    return javascript_clients()


@pytest.fixture(scope="session")
def old_python_sdk() -> Path:
    """The folder with the Python SDK of 2.45."""
    return python_sdk_of_2_45()


@pytest.fixture(scope="session")
def e2b(served: dict[str, str], javascript: Path) -> E2b:
    """Run E2B's command line: ``e2b("sandbox", "list")``."""
    program = javascript / "node_modules" / "@e2b" / "cli" / "dist" / "index.js"

    def run(*words: str, told: str = "") -> subprocess.CompletedProcess[str]:
        argv = ["node", str(program), *words]
        return subprocess.run(
            argv, input=told, capture_output=True, text=True, timeout=_CLIENT_WITHIN_S, env=served, check=False
        )

    return run
