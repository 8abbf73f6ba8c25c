"""Archives that tenants upload: the room that they take together, and how long they stay."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from firkin.engine import build_files
from firkin.engine.build_files import KEPT_S, BuildFiles
from firkin.law.errors import CapacityRejected

ALLOWED = 1000


def taken(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.iterdir())


async def pieces(count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        await asyncio.sleep(0)
        yield b"x" * 100


@pytest.fixture
async def files(tmp_path: Path) -> BuildFiles:
    made = BuildFiles(tmp_path / "files", lambda: ALLOWED - taken(tmp_path / "files"))
    await made.load()
    return made


async def test_uploads_at_the_same_time_take_no_more_room_than_there_is(files: BuildFiles, tmp_path: Path) -> None:
    most = 0

    async def watched(count: int) -> AsyncIterator[bytes]:
        nonlocal most
        async for piece in pieces(count):
            most = max(most, taken(tmp_path / "files"))
            yield piece

    sent = (files.put("bob", f"{number:064x}", watched(10)) for number in range(5))
    ended = await asyncio.gather(*sent, return_exceptions=True)
    assert any(isinstance(one, CapacityRejected) for one in ended)
    assert most <= ALLOWED
    assert taken(tmp_path / "files") <= ALLOWED
    await files.put("bob", "a" * 64, pieces((ALLOWED - taken(tmp_path / "files")) // 100))


async def test_what_nobody_used_for_long_goes_while_the_server_runs(
    files: BuildFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_files, "_SWEPT_EVERY_S", -1.0)
    for name in ("a", "b"):
        await files.put("bob", name * 64, pieces(1))
    old, new = (files.find("bob", name * 64) for name in ("a", "b"))
    assert old is not None
    assert new is not None
    os.utime(old, (time.time() - KEPT_S - 1,) * 2)
    await files.put("bob", "c" * 64, pieces(1))
    assert not os.path.exists(old)
    assert files.find("bob", "a" * 64) is None
    assert files.find("bob", "b" * 64) == new
