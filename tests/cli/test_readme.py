"""What the README prints must run as printed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.test_commands import firkin
from tests.cli.test_serving import start, stop

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.host, pytest.mark.skipif(os.geteuid() != 0, reason="the namespaces driver needs root")]


def block(word: str) -> str:
    """The README's Python block that contains `word`."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (found,) = [text for text in blocks if word in text]
    return str(found)


def run(code: str, tmp_path: Path, **more: str) -> str:
    env = {**os.environ, "TMPDIR": str(tmp_path), **more}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=False, env=env
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_sdk_example_runs(tmp_path: Path) -> None:
    process, _ = start(tmp_path / "state", "--kill-on-exit", driver="namespaces")
    try:
        variables = json.loads(firkin("env", "--json", state=tmp_path / "state").stdout)
        said = run(block("from e2b import Sandbox"), tmp_path, **variables)
    finally:
        stop(process)
    assert "hello from /home/user/hello.py" in said
    assert "exit code 0" in said


def test_the_library_example_runs_and_leaves_nothing(tmp_path: Path) -> None:
    assert re.fullmatch(r"hello from i[a-z0-9]{20}\n\n", run(block("open_runtime"), tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["sdk_hello.py", "library_hello.py"])
def test_the_examples_are_those_of_the_readme(name: str) -> None:
    example = (ROOT / "examples" / name).read_text().split('"""', 2)[2]
    shown = [
        re.sub(r"\s+", "", text) for text in re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    ]
    assert re.sub(r"\s+", "", example) in shown
