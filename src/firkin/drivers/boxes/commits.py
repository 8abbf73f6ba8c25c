"""What a sandbox changed, as a layer: its disk is the upper of an overlay, and an upper can be another's lower.

The sandbox has ended, so nothing moves. The disk is mounted on the loop device of
a slot that is taken for it, detached, so that no mount outlives this process, and
copied with all that makes an upper mean what it does: owners (unshifted, as always
on these disks), whiteouts, and the attributes by which overlayfs marks what is
opaque. A guest cannot make either: overlayfs refuses whiteouts as device nodes,
and hides ``trusted.*``.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from firkin.drivers.ground.slots import Slot
from firkin.host.disks import UPPER, attach, is_attached, mount_ext4
from firkin.host.program_paths import find_program
from firkin.host.programs import program_environment, run_program
from firkin.law.errors import BackendFailure, HostDiskFull, IoFailure

_COMMIT = "commit a layer"
_DETACHED_WITHIN_S = 30.0
_KEPT = "--preserve=mode,ownership,timestamps,links,xattr"


async def copy_layer(image: Path, slot: Slot, into: Path) -> None:
    """Fill the empty directory `into` from the disk `image` of an ended sandbox, by the loop device of `slot`."""
    await _let_go(image)
    mounted = await asyncio.to_thread(_mounted, image, slot, into.parent)
    try:
        # From this process's descriptor: there is no path to the mount.
        source = f"/proc/{os.getpid()}/fd/{mounted}/{UPPER}/."
        tool = find_program("cp", package="coreutils")
        argv = [tool, "-RP", _KEPT, "--reflink=auto", "--", source, f"{into}/."]
        done = await run_program(argv, env=program_environment(into.parent))
    finally:
        os.close(mounted)
    if done.exit_code != 0:
        if any("No space left" in line or "quota exceeded" in line for line in done.complaints):
            raise HostDiskFull(_COMMIT)
        raise IoFailure("copy", f"the disk {image.name}", done.last_line)


async def _let_go(image: Path) -> None:
    """The kernel unbinds a loop device shortly after its last mount went."""
    try:
        async with asyncio.timeout(_DETACHED_WITHIN_S):
            while await asyncio.to_thread(is_attached, str(image)):  # noqa: ASYNC110 — the kernel tells nobody
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise BackendFailure(_COMMIT, "the disk", f"the disk {image.name} is still mounted") from None


def _mounted(image: Path, slot: Slot, scratch: Path) -> int:
    """A detached mount; its loop device unbinds itself when it is closed."""
    disk = os.open(image, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        with _device(slot, scratch) as device:
            loop = attach(device, disk)
            try:
                return mount_ext4(device)
            finally:
                os.close(loop)
    finally:
        os.close(disk)


@contextmanager
def _device(slot: Slot, scratch: Path) -> Iterator[str]:
    """A node of the slot's loop device by number: /dev is not the kernel's everywhere."""
    path = str(scratch / f".loop{slot.numbers.loop}")
    os.mknod(path, stat.S_IFBLK | 0o600, os.makedev(*slot.loop))
    try:
        yield path
    finally:
        os.unlink(path)
