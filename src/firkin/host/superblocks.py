"""What an ext4 says of itself in its superblock, read from the image file or from the kernel while it is mounted."""

from __future__ import annotations

import os
import struct

_AT, _SIZE = 1024, 1024
_STATE, _FEATURES, _LAST_ERROR, _CHECKSUM = 0x3A, 0x64, 0x1CC, 0x3FC
_MAGIC_AT, _MAGIC = 0x38, b"\x53\xef"
_VALID, _ERRORS = 1, 2
_METADATA_CSUM = 0x400
_CASTAGNOLI = 0x82F63B78


def is_clean(image: int) -> bool:
    """Whether the ext4 in the open file `image` was unmounted in order and has never met an error."""
    return _state(os.pread(image, _SIZE, _AT)) & (_VALID | _ERRORS) == _VALID


def has_met_errors(image: int) -> bool:
    """Whether the ext4 in the open file `image` says that the kernel found it damaged."""
    return bool(_state(os.pread(image, _SIZE, _AT)) & _ERRORS)


def mark_clean(image: int) -> None:
    """Say of a copy of a mounted ext4 without a journal that it is in order.

    To be said only of what was written out as a whole while nothing could change
    it. An ext4 that has met errors keeps its word.
    """
    block = bytearray(os.pread(image, _SIZE, _AT))
    state = _state(block)
    if len(block) != _SIZE or block[_MAGIC_AT : _MAGIC_AT + 2] != _MAGIC or state & _ERRORS:
        return
    struct.pack_into("<H", block, _STATE, state | _VALID)
    if struct.unpack_from("<I", block, _FEATURES)[0] & _METADATA_CSUM:
        struct.pack_into("<I", block, _CHECKSUM, _crc32c(block[:_CHECKSUM]))
    os.pwrite(image, block, _AT)


def last_error_at(image: str, loop: int) -> int:
    """When the ext4 in the file `image`, on that loop device, last failed: seconds since 1970, 0 for never."""
    return max(_kernel_says(loop), _image_says(image))


def _kernel_says(loop: int) -> int:
    try:
        with open(f"/sys/fs/ext4/loop{loop}/last_error_time") as file:
            return int(file.read())
    except (OSError, ValueError):  # not mounted any more
        return 0


def _image_says(image: str) -> int:
    try:
        with open(image, "rb", buffering=0) as file:
            block = os.pread(file.fileno(), _SIZE, _AT)
    except OSError:
        return 0
    if len(block) != _SIZE:
        return 0
    seconds: int = struct.unpack_from("<I", block, _LAST_ERROR)[0]
    return seconds


def _state(block: bytes | bytearray) -> int:
    state: int = struct.unpack_from("<H", block, _STATE)[0] if len(block) == _SIZE else 0
    return state


def _crc32c(data: bytes | bytearray) -> int:
    """As ext4 has it: all ones to begin with, not inverted at the end."""
    register = 0xFFFFFFFF
    for byte in data:
        register = register >> 8 ^ _REMAINDERS[(register ^ byte) & 0xFF]
    return register


def _remainder(register: int) -> int:
    for _ in range(8):
        register = register >> 1 ^ (_CASTAGNOLI if register & 1 else 0)
    return register


_REMAINDERS = tuple(map(_remainder, range(256)))
