"""What a machine may take of the host, and what becomes of one whose host has no more."""

from __future__ import annotations

import asyncio
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from firkin.law.driver import BootPlan
from firkin.law.ids import SandboxId
from firkin.law.resources import MIB, SandboxResources
from firkin.testing.driver_suite import begun, said
from tests.qemu.homes import Home
from tests.qemu.marks import real_machines

pytestmark = real_machines

WIDE = SandboxResources(vcpus=1, memory_bytes=512 * MIB, disk_bytes=256 * MIB)
TOUCH = """python3 -c 'print(len(b"1" * (400 << 20)))' > /tmp/touched"""
_TOUCHED_WITHIN_S = 90.0  # emulated, on a busy machine
WRITE = "dd if=/dev/zero of=/tmp/x bs=1M count=100 conv=fsync"


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A folder on a file system of 600 MB."""
    with tempfile.TemporaryDirectory(prefix="firkin-qemu-", dir="/var/tmp") as folder:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600m", "none", folder], check=True)
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", folder], check=True)


async def test_a_machine_may_use_its_memory_and_outlives_a_full_disk(home: Home, small_disk: Path) -> None:
    """Of two tests one, because each would boot a machine of its own."""
    driver = replace(home, state=small_disk / "state").driver()
    await driver.start()
    try:
        plan = BootPlan(sandbox_id=SandboxId("wide"), root=home.root, resources=WIDE)
        machine = await driver.boot(plan)
        await begun(machine, TOUCH)
        async with asyncio.timeout(_TOUCHED_WITHIN_S):
            while not (touched := await said(machine, "cat /tmp/touched 2>/dev/null; true")):
                pass
        assert touched == f"{400 << 20}\n"
        filler = small_disk / "filler"
        with filler.open("wb", buffering=0) as file, suppress(OSError):
            while file.write(bytes(MIB)):
                pass
        assert (await said(machine, f"{WRITE} 2>&1; echo over $?")).endswith("over 1\n")
        filler.unlink()
        assert await said(machine, "cat /proc/meminfo | head -c 8") == "MemTotal"
        await machine.destroy()
    finally:
        await driver.sweep(())
        left = list(await driver.live())
        await driver.aclose()
    assert left == []
