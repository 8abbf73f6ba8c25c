"""Ready-made disks, one a size: formatted once, then copied sparse for each sandbox."""

from __future__ import annotations

import asyncio
import os
import subprocess
import tempfile
from pathlib import Path

from firkin.host.disks import UPPER, WORK
from firkin.law.errors import BackendFailure

# ea_inode (Linux 4.13, e2fsprogs 1.44): else all extended attributes of a file share one block of 4 KiB with their
# names, and the 4,096 bytes of metadata that a file may have do not fit. Small disks would have blocks of 1 KiB.
_FEATURES = "^has_journal,^resize_inode,ea_inode"
_MKFS = ("mkfs.ext4", "-q", "-F", "-m", "0", "-b", "4096", "-O", _FEATURES, "-I", "256", "-G", "128")
_REPAIR_WITHIN_S = 300.0
_EXTENDED = "root_owner=0:0,lazy_itable_init=1,nodiscard,packed_meta_blocks=1"  # few extents: quickly copied


class BaseDisks:
    """Formats each size once. Images are named by size and immutable once there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._making: dict[int, asyncio.Lock] = {}

    async def image(self, size: int) -> Path:
        """The base image of `size` bytes; the first call for a size formats it (about 10 ms a GiB)."""
        path = self._folder / f"base-{size}.img"
        if path.exists():
            return path
        async with self._making.setdefault(size, asyncio.Lock()):
            if not path.exists():
                await self._format(path, size)
        return path

    async def _format(self, path: Path, size: int) -> None:
        with tempfile.TemporaryDirectory(dir=self._folder) as seed:
            for name in (UPPER, WORK):
                (Path(seed) / name).mkdir(mode=0o755)
            aside = path.with_suffix(".new")
            with aside.open("wb") as file:
                os.ftruncate(file.fileno(), size)
            await _mkfs(aside, Path(seed))
            aside.rename(path)


def is_in_order(image: str) -> bool:
    """Whether the checker finds nothing wrong with an ext4, though it may not have been unmounted."""
    return _checked(image, "-n").returncode == 0


def repair(image: str) -> None:
    """Put an ext4 in order and mark it so. `BackendFailure` when that cannot be done without a person."""
    checked = _checked(image, "-p")
    if checked.returncode & ~3:  # 1 and 2: errors were corrected
        name = os.path.basename(image)  # a tenant may read this, who is not told where on the host the image lies
        said = checked.stdout.decode(errors="replace").replace(image, name).strip()[-200:]
        raise BackendFailure("check a disk", "e2fsck", f"{name}: {said}")


def _checked(image: str, how: str) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(
            ["e2fsck", "-f", how, image],
            stdin=subprocess.DEVNULL, capture_output=True, timeout=_REPAIR_WITHIN_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise BackendFailure("check a disk", "e2fsck", f"it took more than {_REPAIR_WITHIN_S} s") from error
    except OSError as error:
        raise BackendFailure("check a disk", "e2fsck", error.strerror or type(error).__name__) from error


async def _mkfs(image: Path, seed: Path) -> None:
    try:
        process = await asyncio.create_subprocess_exec(
            *_MKFS, "-E", _EXTENDED, "-d", str(seed), str(image),
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
    except FileNotFoundError:
        raise BackendFailure(
            "format a disk", "mkfs.ext4", "it is not installed; install it: apt-get install e2fsprogs"
        ) from None
    async with asyncio.timeout(120):
        _, complaint = await process.communicate()
    if process.returncode != 0:
        raise BackendFailure("format a disk", "mkfs.ext4", complaint.decode(errors="replace").strip()[-200:])
