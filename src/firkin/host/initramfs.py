"""Archives that a kernel unpacks into its first root: cpio in the format "newc" (Linux, early-userspace/buffer-format).

Uncompressed, because a virtual machine without hardware help unpacks slower than it reads.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

_HEADER = "070701" + "{:08X}" * 13
_ALIGNED = 4
_PAGE = 4096


def write_initramfs(
    target: Path,
    trees: Mapping[str, Path],
    folders: tuple[str, ...] = (),
    devices: Mapping[str, tuple[int, int]] | None = None,
) -> None:
    """`trees` are files or folders of this machine by their place inside; `folders` are empty ones; `devices` the
    numbers of character devices.

    All belongs to root. Written beside `target`, made durable, and then put in its place.

    Its last page is nearly empty. QEMU puts an archive at the end of a microvm's memory, from the start of a page on,
    and from version 10 its firmware puts the ACPI tables behind: over each other, a kernel may wait for ever.
    """
    aside = target.with_name(f".{target.name}.new")
    with aside.open("wb") as out:
        archive = _Archive(out)
        for folder in folders:
            archive.folder(folder)
        for place, numbers in sorted((devices or {}).items()):
            archive.device(place, numbers)
        for place, source in sorted(trees.items()):
            archive.tree(place.strip("/"), source)
        archive.close()
        out.flush()
        os.fsync(out.fileno())
    aside.replace(target)


class _Archive:
    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._number = 0
        self._folders: set[str] = set()

    def folder(self, place: str) -> None:
        parts = place.strip("/").split("/")
        for depth in range(1, len(parts) + 1):
            name = "/".join(parts[:depth])
            if name and name not in self._folders:
                self._folders.add(name)
                self._entry(name, stat.S_IFDIR | 0o755, b"")

    def tree(self, place: str, source: Path) -> None:
        if "/" in place:
            self.folder(place.rpartition("/")[0])
        if not source.is_dir():
            self._file(place, source)
            return
        self.folder(place)
        for entry in sorted(source.iterdir()):
            self.tree(f"{place}/{entry.name}", entry)

    def device(self, place: str, numbers: tuple[int, int]) -> None:
        self._entry(place, stat.S_IFCHR | 0o666, b"", numbers)

    def close(self) -> None:
        self._entry("TRAILER!!!", 0, b"")
        self._out.write(b"\0" * ((_ALIGNED - self._out.tell()) % _PAGE))

    def _file(self, place: str, source: Path) -> None:
        if source.is_symlink():
            self._entry(place, stat.S_IFLNK | 0o777, os.fsencode(os.readlink(source)))
        else:
            self._entry(place, stat.S_IFREG | (0o755 if os.access(source, os.X_OK) else 0o644), source.read_bytes())

    def _entry(self, name: str, mode: int, content: bytes, device: tuple[int, int] = (0, 0)) -> None:
        self._number += 1
        encoded = os.fsencode(name) + b"\0"
        fields = (self._number, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(encoded), 0)
        self._out.write(_HEADER.format(*fields).encode() + encoded)
        self._pad()
        self._out.write(content)
        self._pad()

    def _pad(self) -> None:
        self._out.write(b"\0" * (-self._out.tell() % _ALIGNED))
