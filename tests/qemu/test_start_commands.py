"""What a template starts is started once, and every microVM made on it goes on from there."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest_asyncio

from firkin.bootstrap.composition import build_backend
from firkin.law.ids import TemplateId
from firkin.law.isolation import Isolation
from firkin.law.processes import Argv, Shell
from firkin.law.resources import MIB, SandboxResources
from firkin.law.sandboxes import SandboxSpec
from firkin.law.templates import LocalSource, TemplateSpec
from firkin.runtime.runtime import Runtime
from firkin.settings import read_settings
from tests.qemu.homes import KERNEL, Home
from tests.qemu.marks import real_machines

pytestmark = real_machines

SIZE = SandboxResources(vcpus=1, memory_bytes=256 * MIB, disk_bytes=128 * MIB)
DRAWN = "head -c 8 /dev/urandom | od -An -tx1 > /dev/shm/drawn; touch /dev/shm/ready; exec sleep 100000"


@pytest_asyncio.fixture
async def runtime(home: Home, tmp_path: Path) -> AsyncIterator[Runtime]:
    async with opened_runtime(home, tmp_path) as opened:
        yield opened


@asynccontextmanager
async def opened_runtime(home: Home, tmp_path: Path, *, ready_machines: int = 0) -> AsyncIterator[Runtime]:
    options = {"qemu.kernel": str(KERNEL), "qemu.accelerator": "tcg", "ready_slots": "3"}
    options["qemu.ready_machines"] = str(ready_machines)
    settings = read_settings({"state_dir": tmp_path / "state", "driver_options": options})
    async with Runtime.open(build_backend(settings), kill_all=True) as opened:
        spec = TemplateSpec(
            id=TemplateId("serves"),
            source=LocalSource(home.root.base),
            isolation=Isolation.MICROVM,
            start=Shell(DRAWN),
            ready=Argv("test", ("-e", "/dev/shm/ready")),
        )
        await opened.templates.prepare(spec)
        yield opened


async def test_it_is_started_once_for_all_and_again_only_when_what_is_kept_is_damaged(
    runtime: Runtime, tmp_path: Path
) -> None:
    spec = SandboxSpec.from_template("serves", resources=SIZE)
    drawn = set()
    for _ in range(2):
        async with await runtime.sandboxes.create(spec) as sandbox:
            drawn.add((await sandbox.exec("cat /dev/shm/drawn")).stdout)
            assert b"sleep" in (await sandbox.exec("cat /proc/[0-9]*/comm")).stdout
    assert len(drawn) == 1, "it was started more than once"
    (kept,) = [path for path in (tmp_path / "state" / "started").iterdir() if path.is_dir()]
    os.truncate(kept / "state", 10)
    async with await runtime.sandboxes.create(spec) as sandbox:
        drawn.add((await sandbox.exec("cat /dev/shm/drawn")).stdout)
    assert len(drawn) == 2, "what was damaged was used"


async def test_what_was_started_for_all_goes_on_in_machines_that_are_woken_ahead(home: Home, tmp_path: Path) -> None:
    spec = SandboxSpec.from_template("serves", resources=SIZE)
    async with opened_runtime(home, tmp_path, ready_machines=1) as runtime:
        async with await runtime.sandboxes.create(spec) as first:
            drawn = (await first.exec("cat /dev/shm/drawn")).stdout
        driver = runtime.backend._node.driver._by_driver["qemu"].running
        async with asyncio.timeout(60):
            while not driver._ahead._shelf._ready:  # noqa: ASYNC110 — nobody tells
                await asyncio.sleep(0.02)
        (waiting,) = driver._ahead._shelf._ready
        async with await runtime.sandboxes.create(spec) as sandbox:
            assert sandbox.id == waiting
            assert (await sandbox.exec("cat /dev/shm/drawn; hostname")).stdout == drawn + f"{waiting}\n".encode()
            assert b"sleep" in (await sandbox.exec("cat /proc/[0-9]*/comm")).stdout
