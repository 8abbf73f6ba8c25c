"""Archives of snapshots between a server and a file."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from firkin.cli.client import ServerClient
from firkin.cli.failures import CommandFailure

MEDIA_TYPE = "application/vnd.firkin.snapshot+tar"
_PIECE = 1 << 20


async def save_archive(server: ServerClient, path: str, file: Path) -> int:
    """Write beside `file`, then rename; how many bytes there were. The server's end of a broken answer is an error."""
    aside = file.with_name(f".{file.name}.part")
    size = 0
    try:
        with aside.open("wb") as target:
            async for chunk in server.download(path):
                await asyncio.to_thread(target.write, chunk)
                size += len(chunk)
            target.flush()
            await asyncio.to_thread(os.fsync, target.fileno())
        aside.rename(file)
    except OSError as error:
        raise CommandFailure(f"{file} cannot be written: {error.strerror or error}") from error
    finally:
        aside.unlink(missing_ok=True)
    return size


async def send_archive(server: ServerClient, path: str, file: Path, params: Mapping[str, str]) -> Any:
    return await server.upload(path, _pieces(file), media_type=MEDIA_TYPE, params=params)


async def _pieces(file: Path) -> AsyncIterator[bytes]:
    with file.open("rb") as source:
        while piece := await asyncio.to_thread(source.read, _PIECE):
            yield piece
