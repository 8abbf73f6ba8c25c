"""Long work in a thread that ends soon after nobody waits for it any more."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Callable
from io import BufferedReader
from typing import TypeVar

T = TypeVar("T")
Stopped = Callable[[], bool]
_PIECE = 4 << 20


async def in_thread(work: Callable[[Stopped], T]) -> T:
    """Run `work`, which asks from time to time whether it is to stop, and then raises `InterruptedError`."""
    left = threading.Event()
    try:
        return await asyncio.to_thread(work, left.is_set)
    finally:
        left.set()


def digest_of_file(file: BufferedReader, algorithm: str, stopped: Stopped) -> str:
    """The digest of the rest of `file`, in hexadecimal digits."""
    digest = hashlib.new(algorithm)
    while piece := file.read(_PIECE):
        if stopped():
            raise InterruptedError("nobody waits for the digest")
        digest.update(piece)
    return digest.hexdigest()
