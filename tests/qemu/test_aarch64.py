"""The same code makes a machine for arm64: kernel, agent, `virt`, a store that is woken. Emulated on any other host.

Needs Debian's packages for arm64 once (30 MB, kept in .tools), from the sources that this machine has.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from firkin.drivers.qemu.inside import TRUNK
from firkin.drivers.qemu.kits import Kit, Kits
from firkin.drivers.qemu.machines import Shape, program
from firkin.drivers.qemu.stores import DISK, Fit
from firkin.drivers.qemu.trunk import Trunk
from firkin.host.base_disks import BaseDisks
from firkin.host.guest_kernels import fetch_kernel, known_kernel
from firkin.host.root_images import RootImages
from firkin.law.driver import RootFilesystem
from firkin.law.errors import BackendFailure
from firkin.law.resources import MIB
from tests.qemu.foreign_packages import NotFetched, configure, unpack
from tests.qemu.lone_machines import ANSWERS_WITHIN_S, LoneMachine, captured, heard, running, said, settled, wake

MACHINE = "aarch64"
PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"
KEPT = Path(__file__).parents[2] / ".tools" / MACHINE
TREE = KEPT / PYTHON
PACKAGES = [
    *(f"{PYTHON}-minimal", f"lib{PYTHON}-minimal", f"lib{PYTHON}-stdlib"),
    *("libc6", "zlib1g", "libexpat1", "libffi8", "dash"),
]
SHAPE = Shape(memory_bytes=256 * MIB, vcpus=2, accelerator="tcg", machine=MACHINE)
BOOTS_WITHIN_S = 120.0

# What it counts and drew is in its memory alone.
COUNTER = """
import os, time
drawn, count = os.urandom(8).hex(), 0
while True:
    count += 1
    with open("/dev/shm/now.new", "w") as file:
        file.write(f"{drawn} {count}\\n")
    os.rename("/dev/shm/now.new", "/dev/shm/now")
    time.sleep(0.05)
"""
NOW = "read -r drawn count </dev/shm/now && echo $drawn $count"


def _lacking() -> str:
    for tool in (program(MACHINE), "apt-get", "dpkg-deb", "mkfs.erofs", "mkfs.ext4"):
        if shutil.which(tool, path="/usr/bin:/usr/sbin:/bin:/sbin") is None:
            return f"{tool} is missing" + ("; install it: apt-get install qemu-system-arm" if "qemu" in tool else "")
    return "" if os.path.exists("/dev/net/tun") else "the kernel has no tap interfaces"


pytestmark = [
    pytest.mark.host,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(_lacking()), reason=_lacking() or "ready"),
]


@dataclass(frozen=True, slots=True)
class Parts:
    kit: Kit
    fit: Fit
    root: Path
    disk: Path


@pytest.fixture(scope="module")
def parts() -> Iterator[Parts]:
    KEPT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="firkin-arm-", dir="/var/tmp") as folder:
        try:
            _fetched(Path(folder))
        except (NotFetched, BackendFailure) as error:
            pytest.skip(f"Debian's packages for arm64 cannot be had here: {error}")
        yield asyncio.run(_put_together(Path(folder)))


def _fetched(folder: Path) -> None:
    if (TREE).exists() and known_kernel(KEPT / "kernel") is not None:
        return
    configuration = configure(folder / "apt", "arm64")
    if not (TREE).exists():
        unpack(PACKAGES, configuration, TREE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("APT_CONFIG", str(configuration))
        asyncio.run(fetch_kernel(KEPT / "kernel", print, MACHINE))


async def _put_together(folder: Path) -> Parts:
    kit = await Kits(folder / "kit", kernel=str(KEPT / "kernel"), machine=MACHINE, foreign=TREE).kit()
    tree = folder / "tree"
    shutil.copytree(TREE, tree, symlinks=True)
    (tree / "bin/sh").unlink(missing_ok=True)
    (tree / "bin/sh").symlink_to("dash")
    root = await RootImages(folder / "roots").image(RootFilesystem(base=str(tree)), print)
    (folder / "disks").mkdir()
    disk = await BaseDisks(folder / "disks").image(128 * MIB)
    fit = Fit(qemu=kit.qemu, kit=kit.digest, root=root.stem, processor="emulated", shape=SHAPE)
    return Parts(kit, fit, root, disk)


def _copied(source: Path, into: Path) -> Path:
    return Path(shutil.copyfile(source, into))


async def _answering(machine: LoneMachine) -> Trunk:
    try:
        return await machine.trunk(within_s=BOOTS_WITHIN_S)
    except (OSError, TimeoutError) as error:
        pytest.fail(f"no answer at {TRUNK} ({error!r}): {machine.complaints()}")


async def _count(trunk: Trunk) -> tuple[str, int]:
    drawn, count = (await said(trunk, "/bin/sh", "-c", NOW)).split()
    return drawn, int(count)


@pytest.mark.asyncio
async def test_a_machine_for_arm64_boots_runs_programs_and_goes_on_from_its_store(parts: Parts, tmp_path: Path) -> None:
    disk = _copied(parts.disk, tmp_path / "disk.img")
    async with running(tmp_path / "first", parts.kit, SHAPE, parts.root, disk) as machine:
        began = time.monotonic()
        trunk = await _answering(machine)
        print(f"answered after {time.monotonic() - began:.1f} s")
        assert (await settled(trunk, "arm")).endswith("arm64")
        asked = "import os, ctypes, fcntl, struct; print(os.uname().machine, os.uname().nodename)"
        assert await said(trunk, f"/usr/bin/{PYTHON}", "-c", asked) == f"{MACHINE} arm\n"
        assert await heard(machine, trunk, f"/usr/bin/{PYTHON}") == "from inside"
        await said(trunk, "/bin/sh", "-c", f"echo kept >/kept; /usr/bin/{PYTHON} -c '{COUNTER}' >/dev/null 2>&1 &")
        until = time.monotonic() + ANSWERS_WITHIN_S
        while await said(trunk, "/bin/sh", "-c", "[ -e /dev/shm/now ] && echo there || echo not yet") != "there\n":
            assert time.monotonic() < until
        before = await _count(trunk)
        monitor = await machine.monitor()
        store = await captured(machine, trunk, monitor, parts.fit, disk, tmp_path / "store")
        await trunk.aclose()
        monitor.close()
    store.require_fit(parts.fit)
    disk = _copied(store.folder / DISK, tmp_path / "other.img")
    async with running(tmp_path / "second", parts.kit, SHAPE, parts.root, disk, store) as machine:
        began = time.monotonic()
        monitor = await machine.monitor()
        await wake(monitor)
        trunk = await _answering(machine)
        print(f"woken after {time.monotonic() - began:.2f} s")
        await settled(trunk, "again")
        drawn, count = await _count(trunk)
        assert await heard(machine, trunk, f"/usr/bin/{PYTHON}") == "from inside"
        assert (drawn, count > before[1]) == (before[0], True)
        assert await said(
            trunk, "/bin/sh", "-c", "read -r word </kept; read -r name </etc/hostname; echo $word $name"
        ) == ("kept again\n")
        await trunk.aclose()
        monitor.close()
