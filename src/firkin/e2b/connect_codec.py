"""The Connect protocol with its JSON codec, without I/O: bytes in, messages out.

Unary calls are plain JSON bodies; streams are envelopes, each a flag byte, a
length of four bytes and a JSON text, the last of them the end-of-stream message.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from enum import StrEnum

from firkin.e2b.json_text import encode
from firkin.e2b.numbers import read_whole

END_STREAM = 0x02
_COMPRESSED = 0x01
_HEADER = struct.Struct(">BI")
UNARY_TYPE = b"application/json"
STREAM_TYPE = b"application/connect+json"
MAX_TIMEOUT_MS = 10**10 - 1


class Code(StrEnum):
    CANCELED = "canceled"
    UNKNOWN = "unknown"
    INVALID_ARGUMENT = "invalid_argument"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    NOT_FOUND = "not_found"
    ALREADY_EXISTS = "already_exists"
    PERMISSION_DENIED = "permission_denied"
    RESOURCE_EXHAUSTED = "resource_exhausted"
    FAILED_PRECONDITION = "failed_precondition"
    ABORTED = "aborted"
    OUT_OF_RANGE = "out_of_range"
    UNIMPLEMENTED = "unimplemented"
    INTERNAL = "internal"
    UNAVAILABLE = "unavailable"
    DATA_LOSS = "data_loss"
    UNAUTHENTICATED = "unauthenticated"


HTTP_STATUS = {
    Code.CANCELED: 499,
    Code.UNKNOWN: 500,
    Code.INVALID_ARGUMENT: 400,
    Code.DEADLINE_EXCEEDED: 504,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.PERMISSION_DENIED: 403,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.FAILED_PRECONDITION: 400,
    Code.ABORTED: 409,
    Code.OUT_OF_RANGE: 400,
    Code.UNIMPLEMENTED: 501,
    Code.INTERNAL: 500,
    Code.UNAVAILABLE: 503,
    Code.DATA_LOSS: 500,
    Code.UNAUTHENTICATED: 401,
}


class RpcError(Exception):
    """A call failed; `code` is what clients branch on."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    def as_json(self) -> bytes:
        return encode({"code": self.code.value, "message": self.message})


@dataclass(frozen=True, slots=True)
class Envelope:
    flags: int
    payload: bytes

    @property
    def ends_stream(self) -> bool:
        return bool(self.flags & END_STREAM)


class EnvelopeReader:
    """Feed it what arrived; get back the envelopes that became complete. Raises `RpcError`.

    No message is larger than `limit`, packed or not. `gzip`: a message that says so is packed.
    """

    def __init__(self, limit: int, *, gzip: bool = False) -> None:
        self._pending = bytearray()
        self._limit = limit
        self._gzip = gzip

    def feed(self, data: bytes) -> list[Envelope]:
        self._pending += data
        found = []
        while (envelope := self._take()) is not None:
            found.append(envelope)
        return found

    def finish(self) -> None:
        """Say that no more will come."""
        if self._pending:
            raise RpcError(Code.INVALID_ARGUMENT, "the request stream ended in the middle of a message")

    def _take(self) -> Envelope | None:
        if len(self._pending) < _HEADER.size:
            return None
        flags, length = _HEADER.unpack_from(self._pending)
        if flags & _COMPRESSED and not self._gzip:
            raise RpcError(Code.UNIMPLEMENTED, "a compressed message without a Connect-Content-Encoding")
        if length > self._limit:
            raise RpcError(Code.RESOURCE_EXHAUSTED, f"a message of {length} bytes; at most {self._limit} are allowed")
        end = _HEADER.size + length
        if len(self._pending) < end:
            return None
        payload = bytes(self._pending[_HEADER.size : end])
        del self._pending[:end]
        if flags & _COMPRESSED and payload:
            payload = gunzip(payload, self._limit)
        return Envelope(flags & ~_COMPRESSED, payload)


def envelope(payload: bytes, flags: int = 0) -> bytes:
    return envelope_head(len(payload), flags) + payload


def envelope_head(length: int, flags: int = 0) -> bytes:
    """What comes before a payload of `length` bytes."""
    return _HEADER.pack(flags, length)


def end_of_stream(error: RpcError | None = None) -> bytes:
    payload = b"{}" if error is None else b'{"error":' + error.as_json() + b"}"
    return envelope(payload, END_STREAM)


def timeout_s(header: bytes | None) -> float | None:
    """The deadline out of ``Connect-Timeout-Ms``, in seconds; None or 0 is no deadline. Raises `RpcError`."""
    if header is None:
        return None
    milliseconds = read_whole(header)
    if milliseconds is None or not 0 <= milliseconds <= MAX_TIMEOUT_MS:
        raise RpcError(Code.INVALID_ARGUMENT, "Connect-Timeout-Ms must be a whole number of at most 10 digits")
    return milliseconds / 1000 or None


def check_version(version: bytes | None) -> None:
    """Raises `RpcError` for a version of the protocol that is not spoken here."""
    if version not in (None, b"1"):
        raise RpcError(Code.INVALID_ARGUMENT, "connect-protocol-version must be 1")


def is_gzip(encoding: bytes | None) -> bool:
    """Raises `RpcError` for a compression that is not spoken here."""
    if encoding not in (None, b"", b"identity", b"gzip"):
        raise RpcError(Code.UNIMPLEMENTED, "unknown compression; supported encodings are gzip and identity")
    return encoding == b"gzip"


def gunzip(data: bytes, limit: int) -> bytes:
    """At most `limit` bytes out of `data`. Raises `RpcError`."""
    stream = zlib.decompressobj(16 + zlib.MAX_WBITS)
    try:
        unpacked = stream.decompress(data, limit + 1)
    except zlib.error:
        raise RpcError(Code.INVALID_ARGUMENT, "a message is not gzip, though it says so") from None
    if len(unpacked) > limit:
        raise RpcError(Code.RESOURCE_EXHAUSTED, f"a message of more than {limit} bytes, which is the limit")
    if not stream.eof or stream.unused_data:
        raise RpcError(Code.INVALID_ARGUMENT, "a gzip message ends too early, or goes on after its end")
    return unpacked
