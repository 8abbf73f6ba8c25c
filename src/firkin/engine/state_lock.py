"""One server to a state directory: a second one is refused, and told by whom."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from firkin.law.errors import BackendFailure, RetryClass


class StateLock:
    """Held from construction to `release`; the kernel releases it when the process dies.

    Raises `BackendFailure` while another process holds it.
    """

    def __init__(self, state_dir: Path) -> None:
        self._fd = os.open(state_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(self._fd, 32, 0).decode("ascii", "replace").strip()
            os.close(self._fd)
            raise BackendFailure(
                "start",
                "the engine",
                f"the state directory {state_dir} is in use by another Firkin (process {holder or 'unknown'});"
                " stop that one or choose another directory",
                retry=RetryClass.NOT_RETRYABLE,
            ) from None
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
