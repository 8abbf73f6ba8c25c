"""State folders for microVM tests: the kernel is fetched once for a checkout, machines are stored once for a module."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from firkin.drivers.qemu.driver import QemuDriver
from firkin.host.guest_kernels import fetch_kernel, known_kernel
from firkin.law.driver import RootFilesystem
from tests.qemu.small_roots import small_root

KERNEL = Path(__file__).parents[2] / ".tools" / "guest-kernel"


@dataclass(frozen=True, slots=True)
class Home:
    state: Path
    root: RootFilesystem

    def driver(self, **options: str) -> QemuDriver:
        """A new driver over that state, not started."""
        settings = {"ready_slots": "3", "ready_machines": "0", "accelerator": "tcg", "kernel": str(KERNEL), **options}
        return QemuDriver.from_settings(self.state, settings)


@pytest.fixture(scope="module", name="home")
def qemu_home() -> Iterator[Home]:
    with tempfile.TemporaryDirectory(prefix="firkin-qemu-", dir="/var/tmp") as folder:
        root = Path(folder) / "root"
        root.mkdir()
        made = asyncio.run(_prepared(root))
        yield Home(state=Path(folder) / "state", root=made)


async def _prepared(root: Path) -> RootFilesystem:
    if known_kernel(KERNEL) is None:
        await fetch_kernel(KERNEL, print)
    return await small_root(root)
