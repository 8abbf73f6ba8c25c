"""One living server to a label: what stands on the host under it would be swept by another, or ended.

The label is kept in the state folder and goes along when that is copied. Two
servers on a folder and its copy would take each other's sandboxes for their own.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from firkin.law.errors import BackendFailure, RetryClass


class LabelClaim:
    """Held from `take` to `release`; the kernel releases it when the process dies."""

    def __init__(self, folder: Path, label: str) -> None:
        self._path = folder / f"{label}.lock"
        self._fd = -1

    def take(self) -> None:
        """Raises `BackendFailure` while a server of another process holds it, `OSError`. Blocks."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._is(fd):
                    os.ftruncate(fd, 0)
                    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
                    self._fd, fd = fd, -1
                    return
            except OSError as error:
                if not isinstance(error, (BlockingIOError, PermissionError)):
                    raise
                holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
                raise _refused(holder) from None
            finally:
                if fd >= 0:
                    os.close(fd)

    def _is(self, fd: int) -> bool:
        """Whether it is still the file of that name: its former holder removes it."""
        try:
            there = os.stat(self._path)
        except FileNotFoundError:
            return False
        mine = os.fstat(fd)
        return (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)

    def release(self) -> None:
        """Idempotent."""
        if self._fd >= 0:
            self._path.unlink(missing_ok=True)
            os.close(self._fd)
            self._fd = -1


def _refused(holder: str) -> BackendFailure:
    return BackendFailure(
        "start",
        "the ground of its sandboxes",
        f"another server (process {holder or 'unknown'}) runs with the name that this state folder has on this machine,"
        " so one is a copy of the other's; stop that server, or remove ground/label from the copy, which gives up"
        " whatever of it still runs",
        retry=RetryClass.NOT_RETRYABLE,
    )
