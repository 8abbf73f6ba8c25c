"""Archives that tenants send for the COPY steps of their builds, each kept under the name it was sent for.

The name is the client's word. What was sent is known by the SHA-256 of its bytes,
counted while they come and part of the file's name: a file never changes, and one
sent again under the same name is another file.

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
from typing import IO

from firkin.law.errors import CapacityRejected, HostDiskFull, IoFailure

KEPT_S = 30 * 86400.0
_ASIDE = ".aside-"
_KEEP = "keep an uploaded archive"


class BuildFiles:
    """`room` says how many bytes of the host's disk an upload may take."""

    def __init__(self, directory: Path, room: Callable[[], int]) -> None:
        self._directory = directory
        self._room = room
        self._sent: dict[str, str] = {}  # the digest of what was last sent under a name

    async def load(self) -> None:
        """Remove what an earlier server did not finish, and what nobody has used for long."""
        self._directory.mkdir(mode=0o700, exist_ok=True)
        self._sent = await asyncio.to_thread(_sweep, self._directory)

    def find(self, owner: str, digest: str) -> str | None:
        name = _name(owner, digest)
        path = self._directory / f"{name}.{self._sent.get(name, '')}"
        try:
            os.utime(path)
        except FileNotFoundError:
            return None
        return str(path)

    def digest_of(self, archive: str) -> str:
        """The SHA-256 of an archive that `find` gave; empty for any other path."""
        path = Path(archive)
        return path.suffix[1:] if path.parent == self._directory else ""

    async def put(self, owner: str, digest: str, chunks: AsyncIterable[bytes]) -> None:
        """`CapacityRejected` when it takes more than there is room for, `HostDiskFull`, `IoFailure`.

        What the chunks' sender raises passes through.
        """
        aside = self._directory / f"{_ASIDE}{secrets.token_hex(8)}"
        room, size, counted = self._room(), 0, hashlib.sha256()
        try:
            with _kept():
                file = aside.open("xb")
            with file:
                async for chunk in chunks:
                    size += len(chunk)
                    _require(room, size)
                    with _kept():
                        await asyncio.to_thread(_write, file, chunk, counted)
                with _kept():
                    file.flush()
                    await asyncio.to_thread(os.fsync, file.fileno())
            name = _name(owner, digest)
            with _kept():
                os.rename(aside, self._directory / f"{name}.{counted.hexdigest()}")
            self._sent[name] = counted.hexdigest()
        finally:
            with suppress(FileNotFoundError):
                aside.unlink()


def _name(owner: str, digest: str) -> str:
    """What tenants call something never becomes a path."""
    return hashlib.sha256(f"{len(owner)}:{owner}{digest}".encode()).hexdigest()


def _write(file: IO[bytes], chunk: bytes, counted: hashlib._Hash) -> None:
    file.write(chunk)
    counted.update(chunk)


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


def _sweep(directory: Path) -> dict[str, str]:
    """What is left: names, each with the digest of what was last used under it."""
    found: list[tuple[float, str, str]] = []
    oldest = time.time() - KEPT_S
    for entry in os.scandir(directory):
        name, _, digest = entry.name.partition(".")
        used = entry.stat().st_mtime
        if not (name and digest) or used < oldest:  # unfinished, of a server that did not count, or of no use
            os.unlink(entry.path)
        else:
            found.append((used, name, digest))
    return {name: digest for _, name, digest in sorted(found)}
