"""The microVM driver: law's `Driver` over QEMU, stored machines, slots and control groups.

Isolation tier ``microvm``: each sandbox has a kernel of its own in a virtual
machine; what each wall is stands beside its code (`spawner`, `memory`). A
machine is booted once for each template and shape, stored with its agent
listening, and woken from there for every sandbox; see `seeds`.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from firkin.drivers.ground.gateways import Keeper
from firkin.drivers.ground.ground import Ground, leave_host
from firkin.drivers.ground.helper_process import HelperDied
from firkin.drivers.ground.launch_helper import LaunchHelper
from firkin.drivers.ground.process_table import held_process
from firkin.drivers.ground.slots import Slot
from firkin.drivers.qemu import preflight
from firkin.drivers.qemu.accelerators import PROBE_WITHIN_S, Accelerators
from firkin.drivers.qemu.ahead import MachinesAhead, hand_over, is_online
from firkin.drivers.qemu.files import captured_store, processor, require_whole
from firkin.drivers.qemu.instance import NAME, Folders, QemuInstance, Surroundings
from firkin.drivers.qemu.kits import Kit, Kits
from firkin.drivers.qemu.launches import Launches, Parts, failure
from firkin.drivers.qemu.machines import Shape
from firkin.drivers.qemu.memory import MemoryImages
from firkin.drivers.qemu.options import QemuOptions
from firkin.drivers.qemu.preparations import Preparations
from firkin.drivers.qemu.roots import MachineRoots
from firkin.drivers.qemu.seeds import Seeds
from firkin.drivers.qemu.stores import MEMORY, Fit, Store, require_digest
from firkin.drivers.qemu.trunk import Trunk
from firkin.drivers.qemu.warm.process_images import Picture, ProcessImage
from firkin.drivers.qemu.warm.warm_images import WarmImages
from firkin.drivers.qemu.warm.warming import Warming
from firkin.host.base_disks import BaseDisks
from firkin.host.counter_rates import counter_khz
from firkin.host.netlink import Traffic
from firkin.host.root_images import RootImages
from firkin.host.stoppable import in_thread
from firkin.law.backend import Preflight
from firkin.law.capabilities import Capabilities, CapabilityName, Permanent
from firkin.law.driver import BootPlan, InstanceRef, RootFilesystem
from firkin.law.errors import (
    BackendFailure,
    DeadlineExceeded,
    UnsupportedCapability,
)
from firkin.law.ids import SandboxId
from firkin.law.resources import SandboxResources
from firkin.law.snapshots import SnapshotKind
from firkin.lifetimes import Children, finish

_UNDO_WITHIN_S = 30.0
_FLUSH_WITHIN_S = 2.0
_ATTEMPTS = 3
_PREPARED_WITHIN_S = 50.0  # before the patience of who asks is over, so that they are told what they wait for


class QemuDriver:
    """Implements the law's `Driver`. `state_dir` holds kernels, root images, stored machines and disks."""

    isolation: ClassVar[str] = "microvm"

    def __init__(self, state_dir: Path, options: QemuOptions | None = None, ground: Ground | None = None) -> None:
        """`ground` is shared with other drivers of the server; by default this one has its own, below `state_dir`."""
        self._state = state_dir
        self._options = options or QemuOptions()
        self._ground = ground or Ground(
            state_dir, ready_slots=self._options.ready_slots, egress_trust=self._options.egress_trust
        )
        self._trees = self._ground.trees(NAME)
        self._folders = Folders(state_dir / "disks", self._ground.run_folder(NAME))
        self._bases = BaseDisks(self._folders.disks)
        self._kits = Kits(state_dir / "kit", kernel=self._options.kernel)
        self._accelerators = Accelerators(state_dir / "kit", self._options.accelerator)
        self._memories = MemoryImages(require_digest)
        self._images = WarmImages(self._options.process_images)
        self._counter_khz = 0
        self._launches: Launches | None = None
        self._instances: dict[SandboxId, QemuInstance] = {}
        self._seeds = Seeds(state_dir / "seeds", self._nobodys_machine, self.discard)
        images = RootImages(state_dir / "roots")
        self._roots = MachineRoots(images, self._seeds)
        self._preparations: Preparations[Parts] = Preparations()
        self._nobodys: set[SandboxId] = set()  # machines that are no sandbox's: to be stored, or to try something
        self._around = Surroundings(
            trees=self._trees,
            networks=self._ground.networks,
            background=Children(),
            released=self._released,
            written=self._written,
            picture=self._picture,
            unled=self._ground.gateways.forget,
        )
        self._warming = Warming(
            self._images, state_dir / "warm", self._woken_for_nobody, self._end_machine, self._around.background
        )
        self._ahead = MachinesAhead(
            self._options.ready_machines,
            self._woken_for_nobody,
            self._end_machine,
            self._warming.picture,
            self._around.background,
        )

    @classmethod
    def from_settings(cls, state_dir: Path, options: Mapping[str, str]) -> QemuDriver:
        """See `QemuOptions`. Raises `InvalidSpec` for anything else."""
        return cls(state_dir, QemuOptions.parse(options))

    @classmethod
    def on_ground(cls, ground: Ground, state_dir: Path, options: Mapping[str, str]) -> QemuDriver:
        """One of several drivers of a server."""
        return cls(state_dir, QemuOptions.parse(options), ground)

    @classmethod
    def declared(cls) -> Capabilities:
        """What it offers on a host that has everything: for the page of all drivers."""
        return preflight.capabilities()

    @property
    def name(self) -> str:
        return NAME

    @property
    def captures(self) -> SnapshotKind:
        return SnapshotKind.CONTINUATION

    @property
    def volumes(self) -> None:
        return None

    @property
    def egress(self) -> Keeper:
        return self._ground.keeper()

    @property
    def launcher_pid(self) -> int | None:
        return self._launches.launcher.pid if self._launches else None

    async def capabilities(self) -> Capabilities:
        return preflight.capabilities()

    async def preflight(self) -> Preflight:
        return await in_thread(lambda _: preflight.check(self._state, self._options.kernel))

    async def start(self) -> None:
        for folder in (self._folders.disks, self._folders.sockets, self._state / "launcher"):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._trees.open()
        await self._ground.open()
        try:
            await self._start_launcher()
        except BaseException:  # the ground is others', too
            await finish(self._ground.aclose(), within_s=_UNDO_WITHIN_S)
            raise

    async def _start_launcher(self) -> None:
        await asyncio.to_thread(self._roots.forget_begun)
        await asyncio.to_thread(self._warming.forget_begun)
        launcher = LaunchHelper(
            "firkin.drivers.qemu.spawner",
            {
                "label": self._trees.label,
                "groups": self._trees.layout.as_object(),
                "scratch": str(self._state / "launcher"),
            },
            lambda answer: BackendFailure("start a machine", NAME, str(answer.get("error"))),
        )
        await launcher.start()
        self._launches = Launches(
            ground=self._ground,
            launcher=launcher,
            folders=self._folders,
            bases=self._bases,
            memories=self._memories,
            images=self._images,
            become=self._instance,
        )
        self._around.background.start(self._drop_idle(), name="idle memories")

    async def _drop_idle(self) -> None:
        while True:
            await asyncio.sleep(20)
            await asyncio.to_thread(self._memories.drop_idle)
            self._images.drop_idle()

    # -- boot -----------------------------------------------------------------------------------

    async def boot(self, plan: BootPlan) -> QemuInstance:
        if plan.sandbox_id in self._instances and plan.sandbox_id not in self._ahead.names:
            raise BackendFailure("create sandbox", NAME, f"an instance {plan.sandbox_id!r} exists already")
        if plan.volumes:
            reason = Permanent("a microVM has no volumes: they are folders of the host's")
            raise UnsupportedCapability("create sandbox", CapabilityName.RUNTIME_CREATE, reason)
        with self._ahead.launching(plan):
            parts = await self._parts(plan)
            instance = await self._attempts(plan, parts)
        if parts.store is not None and not plan.captured and not (plan.repeats and self._options.ready_machines):
            self._warming.went_on(plan, parts.store, parts.fit.shape.accelerator)
        return instance

    async def _parts(self, plan: BootPlan) -> Parts:
        try:
            async with asyncio.timeout(_PREPARED_WITHIN_S if plan.repeats or plan.captured else None) as limit:
                return await self._whole_parts(plan)
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise DeadlineExceeded("create sandbox", _PREPARED_WITHIN_S, detail=_goes_on(plan)) from error

    async def _whole_parts(self, plan: BootPlan) -> Parts:
        key = repr((plan.root, plan.resources, plan.captured, plan.continues, bool(plan.captured and plan.repeats)))
        parts = await self._preparations.wait(key, lambda: self._prepared(plan))
        if plan.captured:
            parts = replace(parts, store=await asyncio.to_thread(captured_store, plan, parts.fit))
        return parts

    async def _prepared(self, plan: BootPlan) -> Parts:
        """All that boots of that template and shape need: minutes the first time, with a kernel to fetch.

        No store for files that a machine which is gone left: it boots from them.
        """
        kit = await self._kits.kit()
        self._counter_khz = self._counter_khz or await asyncio.to_thread(counter_khz)
        root = await self._roots.of(plan)
        accelerator = await self._accelerators.choose(lambda accelerator: self._probe(plan, kit, root, accelerator))
        fit = self._fit(kit, Shape.of(plan.resources, accelerator), root)
        parts = Parts(kit=kit, fit=fit, root=root, store=None)
        if plan.captured or plan.continues:
            return parts
        return replace(parts, store=await self._seeds.seed(plan, parts))

    async def _attempts(self, plan: BootPlan, parts: Parts) -> QemuInstance:
        for attempt in range(_ATTEMPTS):
            waiting = await self._ahead.take(plan)
            slot = waiting.slot if waiting else await self._slot(online=is_online(plan.network))
            try:
                if waiting is not None:
                    return await self._handed_over(waiting, plan)
                return await self._launched(plan, slot, parts)
            except BaseException as error:
                await finish(self._undo(plan, slot), within_s=_UNDO_WITHIN_S)
                retry = isinstance(error, (HelperDied, TimeoutError, ConnectionError))
                if isinstance(error, Exception) and (retry or waiting is not None) and attempt + 1 < _ATTEMPTS:
                    continue
                if (told := failure(error, plan, parts)) is not error:
                    raise told from error
                raise
        raise AssertionError("the loop returns or raises")

    async def _slot(self, *, online: bool) -> Slot:
        return await (await self._ground.slots()).take(online=online)

    async def _launched(self, plan: BootPlan, slot: Slot, parts: Parts) -> QemuInstance:
        assert self._launches is not None, "start() comes first"
        return await self._launches.launch(plan, slot, parts)

    async def _nobodys_machine(self, plan: BootPlan, parts: Parts) -> QemuInstance:
        self._nobodys.add(plan.sandbox_id)
        return await self._attempts(plan, parts)

    async def _woken_for_nobody(self, plan: BootPlan) -> tuple[QemuInstance, Store | None]:
        parts = await self._parts(plan)
        return await self._nobodys_machine(plan, parts), parts.store

    # -- made ahead -----------------------------------------------------------------------------

    def prepared(self, isolation: str, root: RootFilesystem, resources: SandboxResources) -> SandboxId | None:
        """See `PreparesInstances`. It has one tier, whatever is asked for."""
        return self._ahead.promise(root, resources)

    async def _handed_over(self, machine: QemuInstance, plan: BootPlan) -> QemuInstance:
        try:
            await hand_over(machine, plan)
        except BaseException:
            await finish(machine.destroy(), within_s=_UNDO_WITHIN_S)
            raise
        self._nobodys.discard(plan.sandbox_id)
        return machine

    async def _end_machine(self, machine: QemuInstance) -> None:
        await machine.destroy()
        await self._remove_disk(machine.sandbox_id)

    # -- what it is made of ---------------------------------------------------------------------

    def _fit(self, kit: Kit, shape: Shape, root: Path) -> Fit:
        emulated = shape.accelerator != "kvm"
        seen, khz = ("emulated", self._counter_khz) if emulated else (processor(), 0)
        return Fit(qemu=kit.qemu, kit=kit.digest, root=root.stem, processor=seen, shape=shape, counter_khz=khz)

    async def _probe(self, plan: BootPlan, kit: Kit, root: Path, accelerator: str) -> bool:
        """Whether a machine boots with that accelerator so far that its agent answers."""
        name = SandboxId(f"probe{os.urandom(6).hex()}")
        shape = Shape(memory_bytes=256 << 20, vcpus=1, accelerator=accelerator)
        neutral = BootPlan(sandbox_id=name, root=plan.root, resources=plan.resources)
        fit = self._fit(kit, shape, root)
        slot = await self._slot(online=False)
        self._nobodys.add(name)
        try:
            async with asyncio.timeout(PROBE_WITHIN_S):
                await self._launched(neutral, slot, Parts(kit=kit, fit=fit, root=root, store=None))
        except (BackendFailure, OSError, TimeoutError, HelperDied):
            return False
        finally:
            await finish(self._undo(neutral, slot), within_s=_UNDO_WITHIN_S)
        return True

    def _instance(
        self, sandbox_id: SandboxId, ref: InstanceRef, pid: int, pidfd: int, slot: Slot, fit: Fit
    ) -> QemuInstance:
        instance = QemuInstance(
            sandbox_id,
            ref,
            pid=pid,
            pidfd=pidfd,
            slot=slot,
            fit=fit,
            places=self._folders.places(sandbox_id),
            surroundings=self._around,
        )
        self._instances[sandbox_id] = instance
        self._ground.settle(sandbox_id, slot)
        return instance

    def _picture(self, instance: QemuInstance) -> Picture | None:
        root = self._roots.named(instance.fit.root)
        if root is None or not self._images.wants(instance.fit.shape.accelerator):
            return None
        return Picture(instance.pid, root, self._folders.disk(instance.sandbox_id))

    def _written(self, folder: Path, digests: dict[str, str], image: ProcessImage | None, pictured: bool) -> None:
        self._memories.vouch(folder / MEMORY, digests[MEMORY])
        if image is not None:
            self._images.worked()
            self._images.add(folder, digests, image)
        elif pictured:
            self._images.failed()

    # -- ends -----------------------------------------------------------------------------------

    async def _released(self, instance: QemuInstance) -> None:
        self._roots.hold(instance.fit.root)
        self._instances.pop(instance.sandbox_id, None)
        await self._vacate(instance.sandbox_id, instance.slot)

    async def _vacate(self, sandbox_id: SandboxId, slot: Slot) -> None:
        """What is in the slot's network is a machine's, so the network is not used again; its number is."""
        slot.close()
        await self._ground.vacate(sandbox_id, slot)

    async def _undo(self, plan: BootPlan, slot: Slot) -> None:
        ended = plan.sandbox_id not in self._instances and not slot.whole
        await self._end_remains(plan.sandbox_id)
        if not plan.continues:
            await self.discard(plan.sandbox_id)
        if not ended:
            self._instances.pop(plan.sandbox_id, None)
            await self._vacate(plan.sandbox_id, slot)

    async def _end_remains(self, sandbox_id: str) -> None:
        waited = 0.0
        while waited < 5.0:
            for pid in self._trees.members(sandbox_id):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if self._trees.remove(sandbox_id):
                break
            await asyncio.sleep(0.005)
            waited += 0.005
        for path in self._folders.places(sandbox_id).sockets():
            with suppress(FileNotFoundError):
                os.unlink(path)

    async def adopt(self, sandbox_id: SandboxId, ref: InstanceRef) -> QemuInstance | None:
        facts = ref.facts
        if ref.driver != NAME or not all(key in facts for key in ("pid", "start_time", "slot", "kit")):
            return None
        pid = int(facts["pid"])
        pidfd = held_process(pid, int(facts["start_time"]), self._trees.members(sandbox_id))
        if pidfd is None:
            return None
        shape = Shape(
            memory_bytes=int(facts["memory_bytes"]),
            vcpus=int(facts["vcpus"]),
            accelerator=str(facts["accelerator"]),
        )
        fit = Fit(
            qemu=str(facts["qemu"]),
            kit=str(facts["kit"]),
            root=str(facts["root"]),
            processor=str(facts["processor"]),
            shape=shape,
            counter_khz=int(facts.get("counter_khz", 0)),
        )
        slot = self._ground.adopt(int(facts["slot"]))
        self._ground.networks.adopt(sandbox_id, slot.wire, Traffic.of_text(str(facts.get("traffic_before", ""))))
        instance = self._instance(sandbox_id, ref, pid, pidfd, slot, fit)
        with suppress(BackendFailure):
            status = await (await instance.monitor()).ask("query-status")
            instance.frozen = status.get("status") in ("paused", "io-error")  # the second: by an earlier Firkin's QEMU
        return instance

    async def sweep(self, keep: Collection[SandboxId]) -> Sequence[str]:
        kept = {str(sandbox_id) for sandbox_id in (*keep, *self._nobodys)} | self._ahead.names
        boxes = self._trees.boxes()
        images = {path.stem for path in self._folders.disks.glob("*.img") if not path.name.startswith("base-")}
        folder = self._folders.sockets
        sockets = {path.name.partition(".")[0] for path in folder.iterdir()} if folder.exists() else set()
        removed = []
        for orphan in sorted((boxes | images | sockets) - kept):
            await self._end_remains(orphan)
            await self.discard(SandboxId(orphan))
            removed.append(f"what was left of sandbox {orphan}")
        if not self._nobodys:
            await asyncio.to_thread(self._seeds.forget_begun)
        await self._ground.slots()
        return removed

    async def halt(self, sandbox_id: SandboxId) -> bool:
        if self._trees.members(sandbox_id):
            places = self._folders.places(sandbox_id)
            with suppress(OSError, TimeoutError):  # what its programs wrote is in its memory yet
                trunk = await Trunk.open(places.trunk, places.reset, within_s=_FLUSH_WITHIN_S)
                try:
                    await trunk.ask("flush", within_s=_FLUSH_WITHIN_S)
                finally:
                    await trunk.aclose()
        await self._end_remains(sandbox_id)
        return self._folders.disk(sandbox_id).exists()

    async def verify(self, captured: Path) -> None:
        await asyncio.to_thread(require_whole, captured)

    async def require_parts(self, captured: Path, root: RootFilesystem, resources: SandboxResources) -> None:
        """See `KeepsParts`. What has to be fetched or made for that, is."""
        name = SandboxId("captured")
        await self._whole_parts(BootPlan(sandbox_id=name, root=root, resources=resources, captured=str(captured)))

    async def forget_parts(self, captures: Collection[Path]) -> None:
        """See `KeepsParts`."""
        living = {instance.fit.root for instance in self._instances.values()}
        await asyncio.to_thread(self._roots.forget, living, captures)

    async def commit(self, sandbox_id: SandboxId, into: Path) -> None:
        reason = Permanent("a machine's disk is never mounted on the host; templates are built on another tier")
        raise UnsupportedCapability("commit a layer", CapabilityName.TEMPLATE_PREPARE, reason)

    async def discard(self, sandbox_id: SandboxId) -> None:
        await self._ahead.end(sandbox_id)
        await self._remove_disk(sandbox_id)

    async def _remove_disk(self, sandbox_id: SandboxId) -> None:
        await asyncio.to_thread(self._folders.disk(sandbox_id).unlink, missing_ok=True)
        self._nobodys.discard(sandbox_id)

    async def live(self) -> Sequence[SandboxId]:
        boxes = self._trees.boxes() - self._nobodys - self._ahead.names
        return [SandboxId(box) for box in sorted(boxes) if self._trees.members(box)]

    async def aclose(self) -> None:
        await self._ahead.aclose()
        await self._preparations.aclose()
        await self._around.background.aclose()
        for instance in list(self._instances.values()):
            instance.let_go()
        if self._launches is not None:
            await self._launches.launcher.aclose()
        await asyncio.to_thread(self._memories.drop_idle, all_of_them=True)
        self._images.drop_idle(all_of_them=True)
        await asyncio.to_thread(leave_host, self._trees, self._folders.sockets)
        await self._ground.aclose()


def _goes_on(plan: BootPlan) -> str:
    what = (
        "what its snapshot needs here"
        if plan.captured and not plan.repeats
        else "the first machine of its template and size"
    )
    return f"{what} is being prepared, which goes on; try again in a minute"
