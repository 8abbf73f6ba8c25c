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
from io import FileIO
from pathlib import Path

from firkin.law.errors import CapacityRejected, HostDiskFull, IoFailure

KEPT_S = 30 * 86400.0
_ASIDE = ".aside-"
_SWEPT_EVERY_S = 3600.0
_KEEP = "keep an uploaded archive"


class BuildFiles:
    """`room` says how many bytes of the host's disk may still be taken."""

    def __init__(self, directory: Path, room: Callable[[], int]) -> None:
        self._directory = directory
        self._room = room
        self._sent: dict[str, str] = {}  # the digest of what was last sent under a name
        self._writing = 0  # bytes on their way to the disk, in all uploads together
        self._swept_at = 0.0

    async def load(self) -> None:
        """Remove what an earlier server did not finish, and what nobody has used for long. Uploads do so, too."""
        self._directory.mkdir(mode=0o700, exist_ok=True)
        for aside in self._directory.glob(f"{_ASIDE}*"):
            aside.unlink()
        await self._swept()

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
        if time.monotonic() - self._swept_at > _SWEPT_EVERY_S:
            await self._swept()
        aside = self._directory / f"{_ASIDE}{secrets.token_hex(8)}"
        counted = hashlib.sha256()
        try:
            with _kept():
                file = aside.open("xb", buffering=0)
            with file:
                async for chunk in chunks:
                    with self._room_for(len(chunk)), _kept():
                        await asyncio.to_thread(_write, file, chunk, counted)
                with _kept():
                    await asyncio.to_thread(os.fsync, file.fileno())
            name = _name(owner, digest)
            with _kept():
                os.rename(aside, self._directory / f"{name}.{counted.hexdigest()}")
            self._sent[name] = counted.hexdigest()
        finally:
            with suppress(FileNotFoundError):
                aside.unlink()

    @contextmanager
    def _room_for(self, size: int) -> Iterator[None]:
        """The disk is asked for each piece: others write to it, and not all pieces are on it yet."""
        room = self._room() - self._writing
        if size > room:
            raise CapacityRejected(_KEEP, "free disk on the host", requested=size, available=max(0, room), unit="bytes")
        self._writing += size
        try:
            yield
        finally:
            self._writing -= size

    async def _swept(self) -> None:
        self._swept_at = time.monotonic()
        before = set(self._sent)
        found = await asyncio.to_thread(_sweep, self._directory)
        kept = {name: digest for name, digest in self._sent.items() if name in found or name not in before}
        self._sent = {**found, **kept}


def _name(owner: str, digest: str) -> str:
    """What tenants call something never becomes a path."""
    return hashlib.sha256(f"{len(owner)}:{owner}{digest}".encode()).hexdigest()


def _write(file: FileIO, chunk: bytes, counted: hashlib._Hash) -> None:
    left = memoryview(chunk)
    while left:
        left = left[file.write(left) :]
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


def _sweep(directory: Path) -> dict[str, str]:
    """Remove what was not used for long. What is left: names, each with the digest of what was last used under it."""
    found: list[tuple[float, str, str]] = []
    oldest = time.time() - KEPT_S
    for entry in os.scandir(directory):
        if entry.name.startswith(_ASIDE):  # on its way
            continue
        name, _, digest = entry.name.partition(".")
        used = entry.stat().st_mtime
        if not digest or used < oldest:  # without one it is of a server that did not count
            os.unlink(entry.path)
        else:
            found.append((used, name, digest))
    return {name: digest for _, name, digest in sorted(found)}
