"""Machines that are stored with their agent listening, one a template and shape: sandboxes are woken from them."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from pathlib import Path

from firkin.drivers.qemu.ahead import rehearse
from firkin.drivers.qemu.files import remove_folder
from firkin.drivers.qemu.instance import QemuInstance
from firkin.drivers.qemu.launches import Parts
from firkin.drivers.qemu.stores import STATE, Fit, Store, read_store
from firkin.law.driver import BootPlan
from firkin.law.errors import SnapshotIntegrityFailure
from firkin.law.ids import SandboxId, fresh_sandbox_id
from firkin.lifetimes import finish

_END_WITHIN_S = 30.0
Boot = Callable[[BootPlan, Parts], Awaitable[QemuInstance]]


class Seeds:
    """Stored below `folder`. `boot` starts a machine from nothing, `discard` removes the disk of one."""

    def __init__(self, folder: Path, boot: Boot, discard: Callable[[SandboxId], Awaitable[None]]) -> None:
        self._folder = folder
        self._boot = boot
        self._discard = discard
        self._sowing: dict[str, asyncio.Lock] = {}

    async def seed(self, plan: BootPlan, parts: Parts) -> Store:
        """The stored machine that fits; the first call for one boots it. What is damaged is made again."""
        fit, shape, disk = parts.fit, parts.fit.shape, plan.resources.disk_bytes
        leaves = plan.leaves()
        key = f"{fit.root}-{fit.kit}-{shape.memory_mib}-{shape.vcpus}-{shape.accelerator}-{disk >> 20}"
        if leaves:
            key += "-" + hashlib.blake2s("\0".join(sorted(leaves)).encode(), digest_size=4).hexdigest()
        folder = self._folder / key
        async with self._sowing.setdefault(key, asyncio.Lock()):
            if folder.exists():
                with suppress(SnapshotIntegrityFailure):
                    return await asyncio.to_thread(_whole, folder, fit)
                await asyncio.to_thread(remove_folder, folder)
            await self._sow(plan, parts, folder)
            return await asyncio.to_thread(_whole, folder, fit)

    def forget_others(self, images: Collection[str]) -> None:
        """Remove those that are on other root images. Blocks."""
        for folder in self._folder.glob("*-*"):
            if folder.suffix != ".new" and folder.name.partition("-")[0] not in images:
                remove_folder(folder)

    def forget_begun(self) -> None:
        """Remove what a killed server had begun. Blocks."""
        for begun in self._folder.glob("*.new"):
            remove_folder(begun)

    async def _sow(self, plan: BootPlan, parts: Parts, folder: Path) -> None:
        """Boot a machine that is no sandbox's, up to where its agent has run a shell, and write it down.

        What a shell needs of the root image is in the stored memory then, and read by no sandbox again. Its names, and
        what its agent was told to leave, are as long as those of sandboxes, which so find room for theirs in its files.
        """
        name = SandboxId(f"seed{os.urandom(6).hex()}")
        neutral = BootPlan(
            sandbox_id=name,
            root=plan.root,
            resources=plan.resources,
            hostname=str(fresh_sandbox_id()),
            machine_id=os.urandom(16).hex(),
        )
        aside = folder.with_suffix(".new")
        await asyncio.to_thread(remove_folder, aside)
        instance = await self._boot(neutral, parts)
        try:
            await rehearse(instance, plan.leaves())
            aside.mkdir(parents=True, mode=0o700)
            await instance.capture(aside, room_bytes=1 << 62)
        finally:
            await finish(instance.destroy(), within_s=_END_WITHIN_S)
            await self._discard(name)
        aside.rename(folder)


def _whole(folder: Path, fit: Fit) -> Store:
    store = read_store(folder)
    store.require_fit(fit)
    store.require_whole(STATE)
    return store
