"""Archives that tenants send for the COPY steps of their builds, each kept under the name it was sent for.

One that was not used for a long time is removed: a client asks first whether it is
there, and sends it again.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import time
from collections.abc import AsyncIterable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from firkin.law.errors import CapacityRejected, HostDiskFull, IoFailure

KEPT_S = 30 * 86400.0
_ASIDE = ".aside-"
_KEEP = "keep an uploaded archive"


class BuildFiles:
    """`room` says how many bytes of the host's disk an upload may take."""

    def __init__(self, directory: Path, room: Callable[[], int]) -> None:
        self._directory = directory
        self._room = room

    async def load(self) -> None:
        """Remove what an earlier server did not finish, and what nobody has used for long."""
        self._directory.mkdir(mode=0o700, exist_ok=True)
        await asyncio.to_thread(_sweep, self._directory)

    def find(self, owner: str, digest: str) -> str | None:
        path = self._path(owner, digest)
        try:
            os.utime(path)
        except FileNotFoundError:
            return None
        return str(path)

    async def put(self, owner: str, digest: str, chunks: AsyncIterable[bytes]) -> None:
        """`CapacityRejected` when it takes more than there is room for, `HostDiskFull`, `IoFailure`.

        What the chunks' sender raises passes through.
        """
        aside = self._directory / f"{_ASIDE}{secrets.token_hex(8)}"
        room, size = self._room(), 0
        try:
            with _kept():
                file = aside.open("xb")
            with file:
                async for chunk in chunks:
                    size += len(chunk)
                    _require(room, size)
                    with _kept():
                        await asyncio.to_thread(file.write, chunk)
                with _kept():
                    file.flush()
                    await asyncio.to_thread(os.fsync, file.fileno())
            with _kept():
                os.rename(aside, self._path(owner, digest))
        finally:
            with suppress(FileNotFoundError):
                aside.unlink()

    def _path(self, owner: str, digest: str) -> Path:
        """What tenants call something never becomes a path."""
        return self._directory / hashlib.sha256(f"{len(owner)}:{owner}{digest}".encode()).hexdigest()


@contextmanager
def _kept() -> Iterator[None]:
    """What the disk refuses, as our failure."""
    try:
        yield
    except OSError as error:
        if HostDiskFull.explains(error):
            raise HostDiskFull(_KEEP) from error
        raise IoFailure("keep", "an uploaded archive", error.strerror or str(error)) from error


def _require(room: int, size: int) -> None:
    if size > room:
        raise CapacityRejected(_KEEP, "free disk on the host", requested=size, available=max(0, room), unit="bytes")


def _sweep(directory: Path) -> None:
    oldest = time.time() - KEPT_S
    for entry in os.scandir(directory):
        if entry.name.startswith(_ASIDE) or entry.stat().st_mtime < oldest:
            os.unlink(entry.path)
