"""What ``firkin env`` prints is what the installed SDK reads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from firkin.cli.env import env


def printed(state: Path) -> dict[str, str]:
    address = ["--url", "http://127.0.0.1:9", "--api-key", "e2b_ab", "--state-dir", str(state)]
    done = CliRunner().invoke(env, [*address, "--json"], catch_exceptions=False)
    variables: dict[str, str] = json.loads(done.stdout)
    return variables


@pytest.mark.thorough
def test_the_sdk_may_hold_as_many_connections_as_it_is_told(tmp_path: Path) -> None:
    code = "import e2b.api; print(e2b.api.max_connections)"
    shown = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **printed(tmp_path)}, capture_output=True, check=True
    )
    assert int(shown.stdout) == 2000
