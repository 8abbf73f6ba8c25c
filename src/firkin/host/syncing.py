"""Making a mounted file system consistent in the image below it. For threads: the GIL is free meanwhile."""

from __future__ import annotations

import ctypes
import os

_libc = ctypes.CDLL(None, use_errno=True)


def sync_filesystem(fd: int) -> None:
    """syncfs(2): write out everything of the file system that `fd` is on; of an overlay, its upper layer's."""
    if _libc.syncfs(ctypes.c_int(fd)) < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"syncfs: {os.strerror(code)}")
