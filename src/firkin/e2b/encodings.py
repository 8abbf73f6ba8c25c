"""gzip on the way in and out, and which of it a client accepts. Never more than a chunk in memory."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator

from firkin.e2b.exchange import Refused

_GZIP = 16 + zlib.MAX_WBITS
_CHUNK = 256 * 1024
_INLINE = 16 * 1024
_WORTHWHILE = 0.95
_LEVEL = 1  # a sandbox's files travel over a local or fast link: little is gained by trying harder


def accepts_gzip(header: str | None) -> bool:
    """Whether the answer should be gzip: asked for, and not less wished for than the plain bytes.

    Raises `Refused` (406) when neither gzip nor the plain bytes would do.
    """
    if not header:
        return False
    weights = _weights(header)
    gzip = weights.get("gzip", weights.get("x-gzip", 0.0))
    identity = weights.get("identity", weights.get("*"))
    if gzip > 0:
        return identity is None or gzip >= identity
    if identity == 0:
        if weights.get("*", 0) > 0:
            return True
        raise Refused(406, "no acceptable encoding: the supported ones are gzip and identity", should_retry=False)
    return False


def _weights(header: str) -> dict[str, float]:
    weights: dict[str, float] = {}
    for part in header.lower().split(","):
        name, _, parameters = part.partition(";")
        quality = 1.0
        key, _, value = parameters.strip().partition("=")
        if key.strip() == "q":
            try:
                quality = float(value)
            except ValueError:
                raise Refused(400, "the Accept-Encoding header is malformed", should_retry=False) from None
        if name.strip():
            weights[name.strip()] = quality
    return weights


def check_content_encoding(header: str | None) -> bool:
    """Whether the request body is gzip. Raises `Refused` for what is not spoken here."""
    name = (header or "identity").strip().lower()
    if name not in ("identity", "gzip", "x-gzip"):
        raise Refused(400, f"unsupported Content-Encoding {name[:32]!r}; use gzip or identity", should_retry=False)
    return name != "identity"


async def gzipped(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """As gzip; bytes that do not get smaller (judged by the first chunk) are only wrapped."""
    compressor: zlib._Compress | None = None
    async for chunk in chunks:
        compressor = compressor or zlib.compressobj(_level(chunk), zlib.DEFLATED, _GZIP)
        small = len(chunk) <= _INLINE
        data = compressor.compress(chunk) if small else await asyncio.to_thread(compressor.compress, chunk)
        if data:
            yield data
    yield (compressor or zlib.compressobj(0, zlib.DEFLATED, _GZIP)).flush()


def _level(first: bytes) -> int:
    """Images, archives and the like would cost a core's time and gain nothing."""
    sample = first[:_INLINE]
    return _LEVEL if len(zlib.compress(sample, _LEVEL)) < _WORTHWHILE * len(sample) else 0


async def gunzipped(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Raises `Refused` (400) for bytes that are not gzip, or end too early."""
    stream = zlib.decompressobj(_GZIP)
    try:
        async for chunk in chunks:
            pending = chunk
            while pending:
                if stream.eof:
                    stream = zlib.decompressobj(_GZIP)  # a gzip file may have several members
                data = await asyncio.to_thread(stream.decompress, pending, _CHUNK)
                if data:
                    yield data
                pending = stream.unused_data if stream.eof else stream.unconsumed_tail
    except zlib.error as error:
        raise Refused(400, f"the request body is not gzip: {error}", should_retry=False) from None
    while not stream.eof:
        tail = stream.decompress(b"", _CHUNK)
        if not tail:
            raise Refused(400, "the gzip request body ends too early", should_retry=False)
        yield tail
