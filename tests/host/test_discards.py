"""Disks of sandboxes that were deleted."""

from __future__ import annotations

from pathlib import Path

import pytest

from firkin.drivers.boxes.discards import Discards

pytestmark = pytest.mark.asyncio


async def test_a_discarded_disk_is_gone_at_once_and_its_blocks_when_all_is_closed(tmp_path: Path) -> None:
    discards = Discards(tmp_path)
    for number in range(20):
        disk = tmp_path / f"{number}.img"
        disk.write_bytes(b"x" * 4096)
        await discards.discard(disk)
        assert not disk.exists()
    discards.close()
    assert list(tmp_path.iterdir()) == []


async def test_the_same_name_may_be_taken_again_at_once(tmp_path: Path) -> None:
    discards = Discards(tmp_path)
    disk = tmp_path / "again.img"
    for _ in range(20):
        disk.write_bytes(b"x")
        await discards.discard(disk)
    disk.write_bytes(b"the last one")
    discards.close()
    assert disk.read_bytes() == b"the last one"


async def test_discarding_nothing_is_nothing(tmp_path: Path) -> None:
    discards = Discards(tmp_path)
    await discards.discard(tmp_path / "never.img")
    discards.close()


async def test_what_a_killed_server_did_not_free_is_freed_at_the_next_start(tmp_path: Path) -> None:
    (tmp_path / "7.gone").write_bytes(b"x")
    (tmp_path / "lives.img").write_bytes(b"x")
    Discards(tmp_path).sweep()
    assert [path.name for path in tmp_path.iterdir()] == ["lives.img"]
