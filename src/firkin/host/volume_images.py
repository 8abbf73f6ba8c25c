"""Images of volumes: an empty ext4 with a journal, in a sparse file.

Each is formatted by itself and not copied from a ready-made one, as sandboxes'
disks are: it happens once in a volume's life, and so each has an identity of its own.
"""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path

from firkin.law.errors import BackendFailure, HostDiskFull, InvalidReason, InvalidSpec

_MKFS = (
    *("mkfs.ext4", "-q", "-F", "-m", "0", "-b", "4096", "-I", "256", "-i", "16384", "-G", "128"),
    *("-e", "remount-ro", "-O", "has_journal,^resize_inode"),
)
_EXTENDED = "root_owner={owner}:{owner},lazy_itable_init=1,lazy_journal_init=1,nodiscard,packed_meta_blocks=1"
_OWNER = 1000  # the default user inside, who can then write without being root
_WITHIN_S = 120.0
_CREATE = "create a volume"


async def format_volume(path: Path, size: int) -> None:
    """Make `path` an empty volume of `size` bytes. It appears whole and durable, or not at all."""
    aside = path.with_suffix(".new")
    try:
        with aside.open("wb") as file:
            os.ftruncate(file.fileno(), size)
        os.chmod(aside, 0o600)
        await _run(aside, *_MKFS, "-E", _EXTENDED.format(owner=_OWNER))
        await _run(aside, "debugfs", "-w", "-R", "rmdir lost+found")  # nobody asked for it
        await asyncio.to_thread(_put_in_place, aside, path)
    except OSError as error:
        if HostDiskFull.explains(error):
            raise HostDiskFull(_CREATE) from error
        if error.errno in (errno.EFBIG, errno.EINVAL):
            detail = f"the host's file system has no files of {size} bytes; ask for less"
            raise InvalidSpec(_CREATE, InvalidReason.INVALID_VOLUME, detail) from error
        raise BackendFailure(_CREATE, "the host", error.strerror or type(error).__name__) from error
    finally:
        aside.unlink(missing_ok=True)


def _put_in_place(aside: Path, path: Path) -> None:
    fd = os.open(aside, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    aside.rename(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


async def _run(image: Path, program: str, *arguments: str) -> None:
    """What it complains of is answered to a tenant, who is not told where on the host the image lies."""
    try:
        process = await asyncio.create_subprocess_exec(
            program, *arguments, str(image),
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
    except FileNotFoundError:
        detail = "it is not installed; install it: apt-get install e2fsprogs"
        raise BackendFailure(_CREATE, program, detail) from None
    try:
        async with asyncio.timeout(_WITHIN_S):
            _, complaint = await process.communicate()
    except BaseException:
        if process.returncode is None:
            process.kill()
            await process.wait()
        raise
    if process.returncode != 0:
        said = complaint.decode(errors="replace").replace(str(image), "the image").strip()
        raise BackendFailure(_CREATE, program, said[-200:])
