"""The launcher runs on each Python that Firkin does: a module that one of them imports late is out of reach by then."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from firkin.testing.conversation import Conversation
from tests.namespaces.alone import driver_alone

_NAMES = ("python3.11", "python3.12", "python3.13", "python3.14")
_WHICH = "import os, sys; print(os.path.realpath(sys.executable))"


def _interpreters() -> list[str]:
    """Those of this machine, but for the one that all other tests run on."""
    found = []
    for name in _NAMES:
        for folder in (None, *sorted(Path.home().glob(".pyenv/versions/*/bin"))):
            path = shutil.which(name, path=folder and str(folder))
            if path is None:
                continue
            said = subprocess.run([path, "-I", "-c", _WHICH], capture_output=True, text=True, timeout=20, check=False)
            if said.returncode == 0:  # not so a shim in front of nothing
                found.append(said.stdout.strip())
                break
    own = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return [path for path in found if Path(path).name != own]


@pytest.mark.asyncio
async def test_sandboxes_come_from_every_interpreter_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = _interpreters()
    if not others:
        pytest.skip("no other Python from 3.11 on is installed")
    for number, path in enumerate(others):
        monkeypatch.setattr(sys, "executable", path)
        state = tmp_path / str(number)
        state.mkdir()
        async with driver_alone(state) as alone:
            instance = await alone.boot("other")
            async with await Conversation.open(await instance.dial()) as talk:
                assert (await talk.run("/bin/echo", "hello")).stdout == b"hello\n"
                missing = await talk.run("/no/such/program")
                assert missing.fault is not None
            await instance.destroy()
            await alone.driver.discard(instance.sandbox_id)
