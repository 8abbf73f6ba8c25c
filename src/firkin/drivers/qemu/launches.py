"""Launching one machine: what QEMU is told and given, up to where the agent knows whose machine it is."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any  # the JSON edge: an order is read by the launcher alone

from firkin.drivers.ground.ground import Ground
from firkin.drivers.ground.helper_process import HelperDied
from firkin.drivers.ground.launch_helper import LaunchHelper
from firkin.drivers.ground.process_table import start_time
from firkin.drivers.ground.slots import Slot
from firkin.drivers.qemu import machines
from firkin.drivers.qemu.files import listen, own_disk
from firkin.drivers.qemu.instance import NAME, Folders, Names, QemuInstance
from firkin.drivers.qemu.kits import Kit
from firkin.drivers.qemu.memory import MemoryImages, empty_memory, unwritten
from firkin.drivers.qemu.stores import MEMORY, STATE, Fit, Store
from firkin.drivers.qemu.warm.process_images import DEAD, PROGRAM, ProcessImage, content_place, place, require_walls
from firkin.drivers.qemu.warm.warm_images import WarmImages
from firkin.host.base_disks import BaseDisks
from firkin.host.netlink import Traffic
from firkin.law.driver import BootPlan, InstanceRef
from firkin.law.errors import (
    BackendFailure,
    DeadlineExceeded,
    FirkinError,
    HostDiskFull,
    SandboxUnavailable,
    SnapshotIntegrityFailure,
)
from firkin.law.ids import SandboxId
from firkin.lifetimes import finish

WAKE_WITHIN_S = 20.0
_BOOT_WITHIN_S = 30.0
_EMULATED_BOOT_WITHIN_S = 90.0  # 7 s where the processors are its own; others may have them
_UNDO_WITHIN_S = 30.0
_POLL_S = 0.001
_OVERHEAD_BYTES = 256 << 20  # what QEMU needs beside the machine's memory: translated code, devices, its program
_THREADS = 64
_TURN_S = 3.0
_AT_ONCE_A_CPU = 2  # ten that are woken side by side on two take a quarter longer than four by four
_OWN_ID = 1000  # within the slot's range: not that of a root, which a process of a container could have

Become = Callable[[SandboxId, InstanceRef, int, int, Slot, Fit], QemuInstance]
"""Makes an instance of a process: whose it is, its id and descriptor, its slot, and what a store of it must fit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a machine is made of: kernel and agent, what a store must fit, its root image, and where it is woken from.

    Without a `store` it boots.
    """

    kit: Kit
    fit: Fit
    root: Path
    store: Store | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Launches:
    """Of one driver."""

    ground: Ground
    launcher: LaunchHelper
    folders: Folders
    bases: BaseDisks
    memories: MemoryImages
    images: WarmImages
    become: Become
    turns: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_AT_ONCE_A_CPU * (os.cpu_count() or 1)))

    async def launch(self, plan: BootPlan, slot: Slot, parts: Parts) -> QemuInstance:
        """A machine in `slot` that is the plan's. What failed is ended; `HelperDied`, `OSError`, `TimeoutError` and
        `BackendFailure` are how."""
        warm = self.images.lend(parts.store) if parts.store else None
        if warm is None or parts.store is None:
            return await self._awake(plan, slot, parts, None)
        try:
            return await self._awake(plan, slot, replace(parts, store=warm.store), warm.image)
        except (OSError, FirkinError) as error:
            if isinstance(error, OSError) and HostDiskFull.explains(error):
                raise
            self.images.drop(parts.store)
            raise ConnectionAbortedError(f"the image of its process is of no use: {error}") from error
        finally:
            warm.image.close()

    async def _awake(self, plan: BootPlan, slot: Slot, parts: Parts, image: ProcessImage | None) -> QemuInstance:
        """`image`: what the process of QEMU begins from, if it does not begin as QEMU does."""
        store = parts.store
        before = await self.ground.networks.connect(plan.sandbox_id, slot.wire, plan.network)
        base = await self.bases.image(plan.resources.disk_bytes)
        await asyncio.to_thread(own_disk, self.folders.disk(plan.sandbox_id), plan, store, base)
        async with self._turn():
            instance = await self._launched(plan, slot, parts, before, image)
            try:
                if image is not None:
                    await self._begun(instance)
                if store is not None:
                    await _wake(instance)
                await instance.trunk(within_s=WAKE_WITHIN_S if store else boot_within_s(parts.fit.shape.accelerator))
                instance.kernel_release = await instance.settle(names_in(plan))
            except BaseException:
                await finish(instance.destroy(), within_s=_UNDO_WITHIN_S)
                raise
        return instance

    async def _begun(self, instance: QemuInstance) -> None:
        """From an image. Nothing of the machine has run yet."""
        try:
            await instance.monitor()
            require_walls(instance.pid)
        except (OSError, FirkinError):
            self.images.failed()
            raise
        self.images.worked()

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """To be one of those that are woken now. One that does not come to life gives way to others after a while."""
        await self.turns.acquire()
        loop = asyncio.get_running_loop()
        over = loop.call_later(_TURN_S, self.turns.release)
        try:
            yield
        finally:
            if over.when() > loop.time():
                over.cancel()
                self.turns.release()

    async def _launched(
        self, plan: BootPlan, slot: Slot, parts: Parts, before: Traffic, image: ProcessImage | None
    ) -> QemuInstance:
        kit, fit, store = parts.kit, parts.fit, parts.store
        own, size = self.folders.places(plan.sandbox_id), fit.shape.memory_mib << 20
        opened: dict[int, int] = {}
        try:
            opened[machines.FD_TRUNK] = listen(own.trunk)
            opened[machines.FD_RESET] = listen(own.reset)
            opened[machines.FD_CONTROL] = listen(own.control)
            opened[machines.FD_ROOT] = os.open(parts.root, os.O_RDONLY | os.O_CLOEXEC)
            opened[machines.FD_DISK] = os.open(own.disk, os.O_RDWR | os.O_CLOEXEC)
            opened[machines.FD_KERNEL] = os.open(kit.kernel, os.O_RDONLY | os.O_CLOEXEC)
            opened[machines.FD_INITRAMFS] = os.open(kit.initramfs, os.O_RDONLY | os.O_CLOEXEC)
            if store is None:
                opened[machines.FD_MEMORY] = empty_memory(size)
            else:
                digest = store.digests.get(MEMORY, "")
                opened[machines.FD_MEMORY] = await asyncio.to_thread(self.memories.open, store.memory, size, digest)
                if image is None:
                    opened[machines.FD_STATE] = os.open(store.folder / STATE, os.O_RDONLY | os.O_CLOEXEC)
            order = _order(plan.sandbox_id, slot, kit, fit, opened, waking=store is not None)
            if image is not None:
                opened = {place(fd): given for fd, given in opened.items()}
                _give_image(opened, image)
                order |= {"places": list(opened), "tap": place(machines.FD_TAP), "program": PROGRAM}
            launched = await self.launcher.launch_to_its_end(
                plan.sandbox_id, json.dumps(order).encode(), [slot.network, *opened.values()]
            )
        finally:
            for fd in opened.values():
                os.close(fd)
        facts: dict[str, int | str] = {
            "pid": launched.pid,
            "start_time": start_time(launched.pid) or 0,
            "slot": slot.numbers.slot,
            "traffic_before": before.as_text(),
            "kit": fit.kit,
            "root": fit.root,
            "qemu": fit.qemu,
            "processor": fit.processor,
            "memory_bytes": fit.shape.memory_bytes,
            "vcpus": fit.shape.vcpus,
            "accelerator": fit.shape.accelerator,
            "counter_khz": fit.counter_khz,
        }
        return self.become(plan.sandbox_id, InstanceRef(NAME, facts), launched.pid, launched.pidfd, slot, fit)


def boot_within_s(accelerator: str) -> float:
    """How long a machine that boots may take until its agent answers."""
    return _BOOT_WITHIN_S if accelerator == "kvm" else _EMULATED_BOOT_WITHIN_S


def no_boot(parts: Parts) -> BackendFailure:
    """What to say of a machine that did not boot."""
    accelerator = parts.fit.shape.accelerator
    detail = (
        f"with its guest kernel and the accelerator {accelerator!r} the machine ended, or its agent did not answer"
        f" within {boot_within_s(accelerator):.0f} s; the server's options qemu.kernel and qemu.accelerator choose"
        " others"
    )
    return BackendFailure("boot a machine", NAME, detail)


def failure(error: BaseException, plan: BootPlan, parts: Parts) -> BaseException:
    """What to tell of a create that failed for `error`, which may be that itself."""
    if parts.store is None and isinstance(error, (TimeoutError, ConnectionError)):
        return no_boot(parts)
    if isinstance(error, TimeoutError):
        return DeadlineExceeded("create sandbox", WAKE_WITHIN_S, sandbox_id=plan.sandbox_id)
    if isinstance(error, HelperDied):
        return BackendFailure("create sandbox", NAME, "the launcher was killed meanwhile")
    if isinstance(error, SandboxUnavailable):
        return BackendFailure("create sandbox", NAME, "its machine ended while it was woken")
    if isinstance(error, OSError):
        if HostDiskFull.explains(error):
            return HostDiskFull("create sandbox")
        return BackendFailure("create sandbox", NAME, str(error))
    return error


def names_in(plan: BootPlan) -> Names:
    return Names(
        hostname=plan.hostname,
        machine_id=plan.machine_id,
        restored=bool(plan.captured),
        hardened=plan.hardened,
        pids=plan.resources.pids,
    )


def _order(
    sandbox_id: str, slot: Slot, kit: Kit, fit: Fit, given: Mapping[int, int], *, waking: bool
) -> dict[str, Any]:
    """`given`: the descriptors, by the numbers under which QEMU has them."""
    shape = fit.shape
    holes = unwritten(given[machines.FD_MEMORY], shape.memory_mib << 20)
    argv = machines.command_line(shape, start=kit.start, name=sandbox_id, waking=waking, counter_khz=fit.counter_khz)
    return {
        "id": sandbox_id,
        "slot": slot.numbers.slot,
        "uid": slot.numbers.first_uid + _OWN_ID,
        "memory_bytes": shape.memory_bytes + holes + _OVERHEAD_BYTES,
        "pids": _THREADS + shape.vcpus,
        "vcpus": shape.vcpus,
        "places": list(given),
        "tap": machines.FD_TAP,
        "kvm": shape.accelerator == "kvm",
        "file_bytes": 1 << 44,
        "program": kit.program,
        "argv": argv,
    }


def _give_image(opened: dict[int, int], image: ProcessImage) -> None:
    """Add what a process that begins from an image is given beside the others' descriptors."""
    for number, content in enumerate(image.contents):
        opened[content_place(number)] = os.dup(content)
    opened[PROGRAM] = os.dup(image.program)
    dead, other = socket.socketpair()
    other.close()
    opened[DEAD] = dead.detach()


async def _wake(instance: QemuInstance) -> None:
    """Wait until the stored state is loaded, and let the machine run."""
    monitor = await instance.monitor()
    status = "inmigrate"
    async with asyncio.timeout(WAKE_WITHIN_S):
        while True:
            status = str((await monitor.ask("query-status")).get("status"))[:40]
            if status != "inmigrate":
                break
            await asyncio.sleep(_POLL_S)
    if status not in ("paused", "prelaunch"):
        raise SnapshotIntegrityFailure("restore a machine", None, f"QEMU refused its state ({status})")
    await instance.go()
