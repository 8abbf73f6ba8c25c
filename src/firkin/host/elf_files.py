"""What a 64-bit ELF file names: its dynamic loader and its libraries. Read, never run: it may be another machine's."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_DT_NEEDED, _DT_STRTAB, _DT_STRSZ = 1, 5, 10
_SEGMENT = struct.Struct("<IIQQQQ")
_ENTRY = struct.Struct("<qQ")
_MOST_NAMES = 16 << 20


def loader_of(executable: Path) -> Path:
    """The dynamic loader that it names. `ValueError` when it is none, or names none."""
    with executable.open("rb") as file:
        for kind, offset, _, size in _segments(file):
            if kind == _PT_INTERP:
                return Path(_at(file, offset, size).rstrip(b"\0").decode())
    raise ValueError(f"{executable} names no dynamic loader: a static interpreter cannot be bundled")


def needed_by(binary: Path) -> tuple[str, ...]:
    """The libraries that it asks for itself, by name. `ValueError` when it is no such file."""
    with binary.open("rb") as file:
        segments = list(_segments(file))
        dynamic = [_at(file, offset, size) for kind, offset, _, size in segments if kind == _PT_DYNAMIC]
        entries = list(_ENTRY.iter_unpack(dynamic[0])) if dynamic else []
        found = dict(reversed(entries))
        if _DT_STRTAB not in found:
            return ()
        names = _at(file, _place(found[_DT_STRTAB], segments), min(found.get(_DT_STRSZ, 0), _MOST_NAMES))
    return tuple(names[value : names.index(b"\0", value)].decode() for tag, value in entries if tag == _DT_NEEDED)


def _segments(file: BinaryIO) -> Iterator[tuple[int, int, int, int]]:
    """Kind, place in the file, address and size in the file of each."""
    header = _at(file, 0, 64)
    if header[:6] != b"\x7fELF\x02\x01":
        raise ValueError(f"{file.name} is no 64-bit ELF file")
    (offset,) = struct.unpack_from("<Q", header, 32)
    size, count = struct.unpack_from("<HH", header, 54)
    for number in range(count):
        kind, _, begin, address, _, length = _SEGMENT.unpack(_at(file, offset + number * size, _SEGMENT.size))
        yield kind, begin, address, length


def _place(address: int, segments: list[tuple[int, int, int, int]]) -> int:
    for kind, begin, start, length in segments:
        if kind == _PT_LOAD and start <= address < start + length:
            return begin + address - start
    raise ValueError(f"nothing is loaded at {address:#x}")


def _at(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    data = file.read(size)
    if len(data) != size:
        raise ValueError(f"{file.name} is cut off")
    return data
