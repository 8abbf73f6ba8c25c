"""The Python SDK of 2.45: the tests of the newest SDK, run with the older one in front of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clients.installing import ROOT

# What uses `stream_input`, or uploads from a generator: the older SDK has neither.
NEWER = (
    "input_is_streamed_over_one_request",
    "input_that_nobody_reads_ends_with_the_clients_deadline",
    "an_input_handle_passes_on_each_piece_at_once",
    "killing_a_sandbox_tells_the_one_who_uploads_to_it",
)


def run_with(sdk: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(sdk)}
    return subprocess.run(
        [sys.executable, *argv], cwd=ROOT, env=env, capture_output=True, text=True, timeout=120, check=False
    )


def test_the_older_sdk_is_the_one_that_is_found(old_python_sdk: Path) -> None:
    said = run_with(old_python_sdk, "-c", "import e2b; from importlib.metadata import version; print(version('e2b'))")
    assert said.stdout == "2.45.1\n", said.stderr


@pytest.mark.parametrize("driver", ["e2b", "namespaces"])
def test_the_tests_of_the_newest_sdk_pass_with_the_older_one(old_python_sdk: Path, driver: str) -> None:
    names = ("test_sdk_sync.py", "test_sdk_async.py")
    files = [f"tests/{driver}/{name if driver == 'e2b' else name.replace('sdk', 'official_sdk')}" for name in names]
    chosen = " and ".join(f"not {name}" for name in NEWER)
    done = run_with(old_python_sdk, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", chosen, *files)
    assert done.returncode == 0, done.stdout[-4000:]
