"""Frames: ``length u32 | kind u8 | stream u32 | payload``, little-endian.

The guest is hostile: a frame longer than `MAX_PAYLOAD` or of an unknown kind
ends the conversation before anything is allocated for it.

======== ========= ===========================================================
OPEN     host →    a request: JSON object with ``op``; the host picks the stream
DATA     both      bytes: stdout, terminal, file or socket data, stdin, upload
DATA_ERR → host    bytes of stderr
EOF      both      no more DATA on this stream in this direction
EVENT    → host    JSON object, more may follow
RESULT   → host    JSON object; the stream is over
ERROR    → host    JSON object with ``code`` and ``message``; the stream is over
CREDIT   both      u32: so many more bytes of DATA/DATA_ERR may be sent
CANCEL   host →    the host has lost interest; nothing more is sent on the stream
HELLO    → host    JSON object, once, first thing on every connection
======== ========= ===========================================================

Each direction of each stream starts with a credit of `WINDOW` bytes.
"""

from __future__ import annotations

from struct import Struct

HEADER = Struct("<IBI")
HEADER_SIZE = HEADER.size
MAX_PAYLOAD = 1 << 20
WINDOW = 256 * 1024
GRANT_AT = WINDOW // 2  # a reader grants what it took once it is so much: each grant wakes the other end
CHUNK = 64 * 1024
PROTOCOL = 1

OPEN, DATA, DATA_ERR, EOF, EVENT, RESULT, ERROR, CREDIT, CANCEL, HELLO = range(1, 11)

_CREDIT = Struct("<I")


class WireError(Exception):
    """The other side broke the protocol. The connection is not worth keeping."""


def frame(kind: int, stream: int, payload: bytes = b"") -> bytes:
    """One encoded frame. Raises `ValueError` for a payload above `MAX_PAYLOAD`."""
    if len(payload) > MAX_PAYLOAD:
        raise ValueError(f"a payload of {len(payload)} bytes is above the limit of {MAX_PAYLOAD}")
    return HEADER.pack(len(payload), kind, stream) + payload


def credit(stream: int, amount: int) -> bytes:
    return HEADER.pack(_CREDIT.size, CREDIT, stream) + _CREDIT.pack(amount)


def credit_amount(payload: bytes) -> int:
    """The bytes granted by a CREDIT frame's payload; `WireError` if it is not one u32."""
    if len(payload) != _CREDIT.size:
        raise WireError(f"a credit of {len(payload)} bytes; expected {_CREDIT.size}")
    amount: int = _CREDIT.unpack(payload)[0]
    return amount


class FrameReader:
    """Feed it whatever arrived; it returns the frames that became complete as ``(kind, stream, payload)``."""

    __slots__ = ("_pending",)

    def __init__(self) -> None:
        self._pending = bytearray()

    def feed(self, data: bytes) -> list[tuple[int, int, bytes]]:
        """Raises `WireError` for an oversized or unknown frame."""
        pending = self._pending
        if not pending:  # the common case: whole frames, cut out of `data` without another copy
            frames, used = _cut(data)
            if used < len(data):
                pending += memoryview(data)[used:]
            return frames
        pending += data
        frames, used = _cut(pending)
        if used:
            del pending[:used]
        return frames


def _cut(buffer: bytes | bytearray) -> tuple[list[tuple[int, int, bytes]], int]:
    """The whole frames at the start of `buffer`, and how many bytes they take."""
    frames = []
    start, end = 0, len(buffer)
    while end - start >= HEADER_SIZE:
        length, kind, stream = HEADER.unpack_from(buffer, start)
        if length > MAX_PAYLOAD:
            raise WireError(f"a frame of {length} bytes was announced; the limit is {MAX_PAYLOAD}")
        if not OPEN <= kind <= HELLO:
            raise WireError(f"unknown frame kind {kind}")
        stop = start + HEADER_SIZE + length
        if stop > end:
            break
        frames.append((kind, stream, bytes(buffer[start + HEADER_SIZE : stop])))
        start = stop
    return frames, start
