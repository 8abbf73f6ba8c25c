"""Temporary state folders: what a killed or cancelled program left is removed by whoever makes the next."""

from __future__ import annotations

import asyncio
import fcntl
import os
import tempfile
import time
from pathlib import Path

import pytest

import firkin
from firkin.bootstrap.temporary_states import temporary_state
from firkin.settings import Settings, read_settings


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


class Closer:
    """Remembers which folders it was to close, and with which driver."""

    def __init__(self) -> None:
        self.closed: list[tuple[str, str]] = []

    async def __call__(self, settings: Settings) -> None:
        self.closed.append((settings.state_dir.name, settings.driver))


def _left(folder: Path, *made: str, age_s: float = 3600) -> Path:
    folder.mkdir(mode=0o700)
    for name in made:
        (folder / name).mkdir(parents=True)
    when = time.time() - age_s
    os.utime(folder, (when, when))
    return folder


async def _next(close: Closer) -> None:
    async with temporary_state(read_settings({"driver": "memory"}), close):
        pass


async def test_what_was_given_up_before_it_had_a_lock_is_removed(temporary: Path) -> None:
    close = Closer()
    _left(temporary / "firkin-run-empty")
    _left(temporary / "firkin-run-begun", "drivers/namespaces")
    _left(temporary / "firkin-run-young", age_s=0)
    await _next(close)
    assert [path.name for path in temporary.iterdir()] == ["firkin-run-young"]
    assert close.closed == [("firkin-run-begun", "namespaces")]


async def test_what_a_living_program_holds_stays(temporary: Path) -> None:
    folder = _left(temporary / "firkin-run-held", "drivers/namespaces")
    with (folder / "lock").open("wb") as lock:
        old = time.time() - 3600
        os.utime(folder, (old, old))
        fcntl.flock(lock, fcntl.LOCK_EX)
        await _next(Closer())
        assert folder.exists()


@pytest.mark.thorough
@pytest.mark.parametrize("after_s", [0.0, 0.005, 0.02, 0.05, 0.1])
async def test_an_opening_that_is_given_up_leaves_no_folder(temporary: Path, after_s: float) -> None:
    async def opened() -> None:
        async with firkin.open_runtime(driver="memory"):
            await asyncio.sleep(60)

    opening = asyncio.create_task(opened())
    await asyncio.sleep(after_s)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert list(temporary.iterdir()) == []
