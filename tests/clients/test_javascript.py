"""E2B's JavaScript SDK on Node against real sandboxes; what is done and expected stands in scenarios.mjs."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

SCENARIOS = Path(__file__).with_name("scenarios.mjs")
NAMES = re.findall(r"^scenario\('([^']+)'", SCENARIOS.read_text(), re.MULTILINE)


def test_there_are_scenarios_and_each_has_a_name_of_its_own() -> None:
    assert len(NAMES) == len(set(NAMES)) > 20


@pytest.mark.parametrize("name", NAMES)
def test_scenario(name: str, served: dict[str, str], javascript: Path) -> None:
    env = {**served, "CLIENTS": str(javascript)}
    argv = ["node", str(SCENARIOS), name]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stderr
