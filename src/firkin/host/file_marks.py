"""What tells that a file is still the one that was looked at, without reading it again.

An inode's number alone does not: a file system gives it to another file as soon as
the first is gone. Nobody but the kernel sets the time of change (ctime), so whoever
writes to a file, or puts another in its place, leaves another mark. What goes wrong
below the file system, in the disk itself, leaves none.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class FileMark:
    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> FileMark:
        return cls(
            device=status.st_dev,
            inode=status.st_ino,
            size=status.st_size,
            modified_ns=status.st_mtime_ns,
            changed_ns=status.st_ctime_ns,
        )


def marks_in(directory: Path) -> dict[str, FileMark]:
    """Of all that is in `directory`, by name; of a symlink, not of what it points to. Blocks; `OSError`."""
    with os.scandir(directory) as entries:
        return {entry.name: FileMark.of(os.stat(entry.path, follow_symlinks=False)) for entry in entries}
