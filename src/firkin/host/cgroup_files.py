"""Files of a control group, below an open folder of its tree: short, read and written whole."""

from __future__ import annotations

import os
from contextlib import suppress


def write(folder: int, path: str, value: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC, dir_fd=folder)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)


def attempt(folder: int, path: str, value: str) -> None:
    """Write where that is possible: a wish, not a limit."""
    with suppress(OSError):
        write(folder, path, value)


def read(folder: int, path: str) -> str:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)
    except OSError:
        return ""
    try:
        return os.read(fd, 1 << 20).decode()
    except OSError:  # ENODEV: removed between open and read
        return ""
    finally:
        os.close(fd)


def fields(text: str) -> dict[str, int]:
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].lstrip("-").isdigit()}


def number(text: str) -> int:
    return int(text.strip()) if text.strip().isdigit() else 0
