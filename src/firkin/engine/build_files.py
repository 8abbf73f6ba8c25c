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
from collections.abc import AsyncIterable, Callable
from contextlib import suppress
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
        """`CapacityRejected` when it takes more than there is room for, `HostDiskFull`, `IoFailure`."""
        aside = self._directory / f"{_ASIDE}{secrets.token_hex(8)}"
        try:
            with aside.open("xb") as file:
                await self._receive(chunks, file.write)
                await asyncio.to_thread(os.fsync, file.fileno())
            os.rename(aside, self._path(owner, digest))
        except OSError as error:
            if HostDiskFull.explains(error):
                raise HostDiskFull(_KEEP) from error
            raise IoFailure("keep", "an uploaded archive", error.strerror or str(error)) from error
        finally:
            with suppress(FileNotFoundError):
                aside.unlink()

    async def _receive(self, chunks: AsyncIterable[bytes], write: Callable[[bytes], int]) -> None:
        room, size = self._room(), 0
        async for chunk in chunks:
            size += len(chunk)
            if size > room:
                raise CapacityRejected(
                    _KEEP, "free disk on the host", requested=size, available=max(0, room), unit="bytes"
                )
            await asyncio.to_thread(write, chunk)

    def _path(self, owner: str, digest: str) -> Path:
        """What tenants call something never becomes a path."""
        return self._directory / hashlib.sha256(f"{len(owner)}:{owner}{digest}".encode()).hexdigest()


def _sweep(directory: Path) -> None:
    oldest = time.time() - KEPT_S
    for entry in os.scandir(directory):
        if entry.name.startswith(_ASIDE) or entry.stat().st_mtime < oldest:
            os.unlink(entry.path)
