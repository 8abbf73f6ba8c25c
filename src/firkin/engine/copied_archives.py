"""The archives that COPY steps take: what a client uploaded, as a plain tar, piece by piece.

Only decompressed here, in a thread; it is unpacked inside the sandbox that it is for.
"""

from __future__ import annotations

import asyncio
import lzma
import zlib
from collections.abc import AsyncIterator, Generator

from firkin.host.archives import decompressed
from firkin.law.errors import TemplateFault, TemplatePrepareFailure

_PIECE = 1 << 20
_UNREADABLE = (OSError, EOFError, zlib.error, lzma.LZMAError)


async def archive_bytes(path: str) -> AsyncIterator[bytes]:
    """`TemplatePrepareFailure` for what cannot be read or decompressed."""
    pieces = _pieces(path)
    try:
        while piece := await asyncio.to_thread(next, pieces, b""):
            yield piece
    except _UNREADABLE as error:
        detail = f"the uploaded archive cannot be read: {error}"
        raise TemplatePrepareFailure(TemplateFault.SOURCE_CORRUPT, detail) from error
    finally:
        await asyncio.to_thread(pieces.close)


def _pieces(path: str) -> Generator[bytes, None, None]:
    with open(path, "rb") as file, decompressed(file) as content:
        while piece := content.read(_PIECE):
            yield piece
