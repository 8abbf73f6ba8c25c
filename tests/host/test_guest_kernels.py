"""The kernel proper is found in every form in which it is delivered."""

from __future__ import annotations

import gzip
import lzma
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from firkin.host.guest_kernels import _downloaded, kernel_proper, modules_in_order
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


def _module(needs: str) -> bytes:
    return b"\x7fELF" + b"\0license=GPL\0depends=" + needs.encode() + b"\0name=it\0"


@pytest.mark.parametrize("packed", [bytes, lzma.compress], ids=["plain", "xz"])
async def test_modules_are_taken_after_what_they_need_and_without_their_compression(
    tmp_path: Path, packed: Callable[[bytes], bytes]
) -> None:
    """Debian 13 compresses each."""
    modules = {"overlay": "", "virtio_net": "net-failover,virtio", "net_failover": "", "virtio": "", "other": ""}
    folder = tmp_path / "lib" / "modules" / "6.12"
    folder.mkdir(parents=True)
    ending = ".ko" if packed is bytes else ".ko.xz"
    for name, needs in modules.items():
        (folder / f"{name}{ending}").write_bytes(packed(_module(needs)))
    taken = await modules_in_order(tmp_path / "lib", tmp_path)
    assert list(taken) == ["net_failover", "virtio", "virtio_net", "overlay"]
    assert taken["virtio_net"] == _module("net-failover,virtio")


@pytest.mark.parametrize(
    "broken",
    [
        lzma.compress(b"\x7fELF" + bytes(5000))[:-40] + bytes(40),
        lzma.compress(b"\x7fELF" + bytes(5000))[:-30],
        lzma.compress(b"neither"),
    ],
    ids=["damaged", "cut", "other"],
)
async def test_a_module_that_is_none_under_its_compression_is_refused(tmp_path: Path, broken: bytes) -> None:
    (tmp_path / "overlay.ko.xz").write_bytes(broken)
    with pytest.raises(BackendFailure, match=r"overlay\.ko\.xz"):
        await modules_in_order(tmp_path, tmp_path)


_APT_GET = """
while [ "$1" != download ]; do shift; done; shift
for package; do : > "$package.deb"; done
"""


def _apt(folder: Path, packages: dict[str, list[str]]) -> None:
    """The programs of that name, which know `packages`: what each depends on."""
    for name, needs in packages.items():
        (folder / f"{name}.told").write_text("".join(f"  Depends: {need}\n" for need in needs))
    for name, text in (("apt-cache", f'cat "{folder}/$2.told"'), ("apt-get", _APT_GET)):
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)


@pytest.mark.parametrize(
    ("packages", "fetched"),
    [
        (
            {
                "linux-image-cloud-amd64": ["linux-image-6.1.0-1-cloud-amd64"],
                "linux-image-6.1.0-1-cloud-amd64": ["kmod"],
            },
            ["linux-image-6.1.0-1-cloud-amd64.deb"],
        ),
        (
            {
                "linux-image-virtual": ["linux-image-6.8.0-31-generic"],
                "linux-image-6.8.0-31-generic": ["kmod", "linux-modules-6.8.0-31-generic"],
            },
            ["linux-image-6.8.0-31-generic.deb", "linux-modules-6.8.0-31-generic.deb"],
        ),
    ],
    ids=["Debian", "Ubuntu"],
)
async def test_each_distribution_has_a_kernel_for_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packages: dict[str, list[str]], fetched: list[str]
) -> None:
    (tmp_path / "bin").mkdir()
    _apt(tmp_path / "bin", packages)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    found = await _downloaded(tmp_path, print, "x86_64")
    assert [path.name for path in found] == fetched


async def test_a_machine_whose_sources_have_none_is_told_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _apt(tmp_path, {})
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(BackendFailure, match=r"linux-image-virtual.*apt-get update.*qemu\.kernel=FOLDER"):
        await _downloaded(tmp_path, print, "x86_64")
