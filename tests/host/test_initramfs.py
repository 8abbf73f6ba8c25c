"""What a kernel unpacks at its start, and how much room it leaves."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from firkin.host.initramfs import write_initramfs


@pytest.mark.parametrize("size", [0, 1, 3000, 3600, 4000, 4095, 4096, 9000])
def test_the_last_page_has_room_for_the_firmware_s_tables(tmp_path: Path, size: int) -> None:
    (tmp_path / "file").write_bytes(b"x" * size)
    write_initramfs(tmp_path / "archive", {"/file": tmp_path / "file"}, folders=("dev",))
    content = (tmp_path / "archive").read_bytes()
    assert len(content) % 4096 == 4
    end = content.index(b"TRAILER!!!") + len(b"TRAILER!!!")
    assert content[end:].strip(b"\0") == b""
    assert content.count(b"070701") == 3


def test_a_device_has_its_numbers_and_no_content(tmp_path: Path) -> None:
    write_initramfs(tmp_path / "archive", {}, folders=("dev",), devices={"dev/urandom": (1, 9)})
    content = (tmp_path / "archive").read_bytes()
    start = content.index(b"dev/urandom\0") - 110  # the length of a header
    fields = [int(content[at : at + 8], 16) for at in range(start + 6, start + 110, 8)]
    mode, size, numbers = fields[1], fields[6], fields[9:11]
    assert stat.S_ISCHR(mode)
    assert (size, numbers) == (0, [1, 9])
