"""The kernel proper is found in every form in which it is delivered."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import pytest

from firkin.host.guest_kernels import kernel_proper
from firkin.law.errors import BackendFailure

ELF = b"\x7fELF" + bytes(range(256)) * 8
IMAGE = b"MZ" + bytes(0x36) + b"ARM\x64" + bytes(range(256)) * 8


def _bz_image(payload: bytes) -> bytes:
    """One sector for setup, then the payload 64 bytes into what follows."""
    head = bytearray(2 * 512)
    head[0x1F1] = 1
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", head, 0x248, 64, len(payload))
    return bytes(head) + bytes(64) + payload + bytes(100)


def _zboot(payload: bytes) -> bytes:
    return b"MZ\0\0zimg" + struct.pack("<II", 512, len(payload)) + bytes(512 - 16) + payload + bytes(100)


@pytest.mark.parametrize(
    ("delivered", "proper"),
    [
        (_bz_image(gzip.compress(ELF) + b"size"), ELF),
        (_bz_image(ELF), ELF),
        (ELF, ELF),
        (IMAGE, IMAGE),
        (gzip.compress(IMAGE), IMAGE),
        (_zboot(gzip.compress(IMAGE)), IMAGE),
    ],
    ids=["bzImage", "bzImage, not compressed", "ELF", "Image", "Image.gz", "EFI zboot"],
)
async def test_the_kernel_proper_is_taken_out(tmp_path: Path, delivered: bytes, proper: bytes) -> None:
    path = tmp_path / "vmlinuz"
    path.write_bytes(delivered)
    assert await kernel_proper(path, tmp_path) == proper


@pytest.mark.parametrize(
    "delivered",
    [_zboot(b"unknown"), _bz_image(b"unknown"), gzip.compress(b"no kernel", mtime=0)],
    ids=["zboot", "bz", "gzip"],
)
async def test_what_holds_no_kernel_is_told(tmp_path: Path, delivered: bytes) -> None:
    path = tmp_path / "vmlinuz"
    path.write_bytes(delivered)
    with pytest.raises(BackendFailure, match="fetch a guest kernel"):
        await kernel_proper(path, tmp_path)
