from __future__ import annotations

import os
from pathlib import Path

import pytest

from firkin.host.disks import copy_image, copy_sparse


def copied(tmp_path: Path, size: int) -> Path:
    target = tmp_path / "target"
    with (tmp_path / "source").open("rb") as source, target.open("wb+") as file:
        copy_sparse(source.fileno(), file.fileno(), size)
    return target


def test_a_sparse_copy_has_the_same_bytes_and_stays_sparse(tmp_path: Path) -> None:
    with (tmp_path / "source").open("wb") as source:
        source.write(b"head" * 1024)
        source.seek(64 << 20)
        source.write(b"middle" * 4096)
        source.truncate(256 << 20)
    target = copied(tmp_path, 256 << 20)
    assert target.stat().st_size == 256 << 20
    assert target.stat().st_blocks * 512 < 1 << 20
    with target.open("rb") as file:
        assert file.read(4096) == b"head" * 1024
        file.seek(64 << 20)
        assert file.read(24576) == b"middle" * 4096


def test_an_empty_source_gives_a_hole_of_the_size_asked_for(tmp_path: Path) -> None:
    (tmp_path / "source").touch()
    target = copied(tmp_path, 1 << 20)
    assert target.read_bytes() == bytes(1 << 20)
    assert os.stat(target).st_blocks == 0


def test_a_copy_that_is_given_up_stops(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"x" * 4096)
    with (
        (tmp_path / "source").open("rb") as source,
        (tmp_path / "target").open("wb+") as target,
        pytest.raises(InterruptedError),
    ):
        copy_image(source.fileno(), target.fileno(), 4096, stopped=lambda: True)


def test_an_image_is_copied_whole(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"x" * 5000)
    with (tmp_path / "source").open("rb") as source, (tmp_path / "target").open("wb+") as target:
        copy_image(source.fileno(), target.fileno(), 1 << 20)
    assert (tmp_path / "target").read_bytes() == b"x" * 5000 + bytes((1 << 20) - 5000)
