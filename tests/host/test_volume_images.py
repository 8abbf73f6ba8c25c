"""Images that cannot be made: why, without where on the host."""

from __future__ import annotations

import resource
import shutil
import subprocess
from pathlib import Path

import pytest

from firkin.host import base_disks
from firkin.host.base_disks import repair
from firkin.host.volume_images import format_volume
from firkin.law.errors import BackendFailure, InvalidSpec

with_e2fsprogs = pytest.mark.skipif(shutil.which("mkfs.ext4") is None, reason="mkfs.ext4 is not installed")


async def test_a_size_that_the_file_system_has_no_files_of_is_the_callers_mistake(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, limits[1]))
    try:
        with pytest.raises(InvalidSpec, match="no files of 1073741825 bytes; ask for less") as refused:
            await format_volume(tmp_path / "v.img", (1 << 30) + 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(tmp_path) not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


async def test_a_folder_that_is_gone_is_not_named(tmp_path: Path) -> None:
    with pytest.raises(BackendFailure, match="No such file or directory") as refused:
        await format_volume(tmp_path / "gone" / "v.img", 1 << 30)
    assert str(tmp_path) not in str(refused.value)


@with_e2fsprogs
async def test_what_the_tools_say_of_an_image_does_not_say_where_it_is(tmp_path: Path) -> None:
    with pytest.raises(BackendFailure, match=r"mkfs\.ext4") as refused:
        await format_volume(tmp_path / "v.img", 4096)
    assert str(tmp_path) not in str(refused.value)

    (tmp_path / "vdamaged.img").write_bytes(bytes(1 << 20))
    with pytest.raises(BackendFailure, match=r"vdamaged\.img") as damaged:
        repair(str(tmp_path / "vdamaged.img"))
    assert str(tmp_path) not in str(damaged.value)


def test_a_check_that_takes_too_long_is_told_without_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(command: list[str], **_: object) -> None:
        raise subprocess.TimeoutExpired(command, 1)

    monkeypatch.setattr(base_disks.subprocess, "run", slow)
    with pytest.raises(BackendFailure, match="it took more than") as late:
        repair(str(tmp_path / "v.img"))
    assert str(tmp_path) not in str(late.value)
