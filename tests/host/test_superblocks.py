"""The state of an ext4, read and set without mounting it; e2fsprogs judges."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from firkin.host.superblocks import is_clean, last_error_at, mark_clean

pytestmark = pytest.mark.skipif(shutil.which("mkfs.ext4") is None, reason="e2fsprogs is not installed")
_NO_LOOP = -1


@pytest.fixture(params=["metadata_csum", "^metadata_csum"])
def image(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "image"
    with path.open("wb") as file:
        file.truncate(16 << 20)
    features = f"^has_journal,{request.param}"
    subprocess.run(["mkfs.ext4", "-q", "-F", "-O", features, path], check=True, capture_output=True)
    return path


def state(image: Path) -> str:
    said = subprocess.run(["dumpe2fs", "-h", image], check=True, capture_output=True, text=True).stdout
    return next(line.split(":")[1].strip() for line in said.splitlines() if line.startswith("Filesystem state"))


def set_state(image: Path, bits: int) -> None:
    subprocess.run(["debugfs", "-w", "-R", f"ssv state {bits}", image], check=True, capture_output=True)


def test_a_formatted_image_is_clean_and_marking_it_changes_nothing(image: Path) -> None:
    before = image.read_bytes()
    with image.open("rb+", buffering=0) as file:
        assert is_clean(file.fileno())
        mark_clean(file.fileno())
    assert image.read_bytes() == before
    assert last_error_at(str(image), _NO_LOOP) == 0


def test_a_mounted_one_is_marked_and_its_checksum_holds(image: Path) -> None:
    set_state(image, 0)
    assert state(image) == "not clean"
    with image.open("rb+", buffering=0) as file:
        assert not is_clean(file.fileno())
        mark_clean(file.fileno())
        assert is_clean(file.fileno())
    assert state(image) == "clean"
    assert subprocess.run(["e2fsck", "-fn", image], capture_output=True, check=False).returncode == 0


def test_one_with_errors_keeps_its_word(image: Path) -> None:
    set_state(image, 2)
    with image.open("rb+", buffering=0) as file:
        mark_clean(file.fileno())
        assert not is_clean(file.fileno())


def test_what_is_no_ext4_is_neither_clean_nor_touched(tmp_path: Path) -> None:
    for size in (0, 100, 1 << 20):
        path = tmp_path / str(size)
        path.write_bytes(b"\0" * size)
        with path.open("rb+", buffering=0) as file:
            mark_clean(file.fileno())
            assert not is_clean(file.fileno())
        assert path.read_bytes() == b"\0" * size
        assert last_error_at(str(path), _NO_LOOP) == 0
    assert last_error_at(str(tmp_path / "none"), _NO_LOOP) == 0
