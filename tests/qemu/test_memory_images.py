"""Stored memories that are loaded once and mapped by many: whose memory a machine wakes with."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from firkin.drivers.qemu.memory import MemoryImages
from firkin.drivers.qemu.stores import digest_of, require_digest
from firkin.law.errors import SnapshotIntegrityFailure

SIZE = 1 << 16


class Images:
    """Loads memories and remembers which files were read for it."""

    def __init__(self) -> None:
        self.checked: list[str] = []
        self.images = MemoryImages(self._check)

    def _check(self, path: Path, digest: str) -> None:
        require_digest(path, digest)
        self.checked.append(path.name)

    def content(self, path: Path, digest: str | None = None) -> bytes:
        opened = self.images.open(path, SIZE, digest or digest_of(path))
        try:
            return os.pread(opened, SIZE, 0).rstrip(b"\0")
        finally:
            os.close(opened)


@pytest.fixture
def images() -> Iterator[Images]:
    made = Images()
    yield made
    made.images.drop_idle(all_of_them=True)


def stored(path: Path, text: bytes) -> Path:
    """In the inode that is there already, if one is: as a file system gives one again."""
    with path.open("r+b" if path.exists() else "wb") as file:
        file.write(text.ljust(SIZE, b"\0"))
    return path


def test_a_memory_in_an_inode_that_is_given_again_is_its_own(images: Images, tmp_path: Path) -> None:
    first = stored(tmp_path / "memory", b"of one tenant")
    inode = first.stat().st_ino
    assert images.content(first) == b"of one tenant"
    second = stored(first, b"of another")
    assert second.stat().st_ino == inode
    assert images.content(second) == b"of another"
    assert images.checked == ["memory", "memory"]


def test_a_memory_is_read_once_for_all_who_wake_from_it(images: Images, tmp_path: Path) -> None:
    path = stored(tmp_path / "memory", b"content")
    assert [images.content(path) for _ in range(3)] == [b"content"] * 3
    assert images.checked == ["memory"]


def test_a_memory_that_was_just_written_down_is_not_read_again(images: Images, tmp_path: Path) -> None:
    path = stored(tmp_path / "memory", b"content")
    images.images.vouch(path, digest_of(path))
    assert images.content(path) == b"content"
    assert images.checked == []


def test_whoever_alters_what_was_just_written_down_is_found_out(images: Images, tmp_path: Path) -> None:
    path = stored(tmp_path / "memory", b"content")
    os.utime(path, ns=(0, 0))
    digest = digest_of(path)
    images.images.vouch(path, digest)
    stored(path, b"altered")
    with pytest.raises(SnapshotIntegrityFailure, match="damaged"):
        images.content(path, digest)


def test_a_second_file_is_read_though_it_says_to_have_the_content_of_the_first(images: Images, tmp_path: Path) -> None:
    first, second = stored(tmp_path / "first", b"content"), stored(tmp_path / "second", b"another")
    images.content(first)
    with pytest.raises(SnapshotIntegrityFailure, match="damaged"):
        images.content(second, digest_of(first))


def test_a_memory_that_is_altered_while_it_is_loaded_is_refused(images: Images, tmp_path: Path) -> None:
    path = stored(tmp_path / "memory", b"content")
    os.utime(path, ns=(0, 0))  # old enough: two writes within a tick of some kernels have the same time
    digest = digest_of(path)
    images.content(path)
    with path.open("r+b") as file:
        file.write(b"altered")
    with pytest.raises(SnapshotIntegrityFailure, match="damaged"):
        images.content(path, digest)
