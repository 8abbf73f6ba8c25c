"""Law's `Driver` over a launcher, slots, disks and control groups, for one tier of those that need all four."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from firkin.drivers.boxes.captures import IMAGE, DiskThreads
from firkin.drivers.boxes.commits import copy_layer
from firkin.drivers.boxes.instance import BoxInstance, Surroundings
from firkin.drivers.boxes.launcher import Launcher, LaunchFailed, read_report, settled
from firkin.drivers.boxes.links import AgentLink, remove_place
from firkin.drivers.boxes.options import BoxOptions
from firkin.drivers.boxes.orders import LaunchOrder
from firkin.drivers.boxes.tier import Tier
from firkin.drivers.boxes.volumes import VolumeDisks
from firkin.drivers.ground.gateways import Keeper
from firkin.drivers.ground.ground import Ground, leave_host
from firkin.drivers.ground.helper_process import HelperDied
from firkin.drivers.ground.launch_helper import Launched
from firkin.drivers.ground.process_table import held_process, start_time
from firkin.drivers.ground.slots import Slot
from firkin.host.base_disks import BaseDisks, is_in_order, repair
from firkin.host.disks import is_attached
from firkin.host.netlink import Traffic
from firkin.host.overlays import takes_descriptors
from firkin.host.superblocks import is_clean
from firkin.host.syscalls import kill_pidfd, open_tree
from firkin.law.backend import Preflight
from firkin.law.capabilities import Capabilities
from firkin.law.driver import BootPlan, InstanceRef
from firkin.law.errors import (
    BackendFailure,
    DeadlineExceeded,
    InvalidReason,
    InvalidSpec,
    IoFailure,
    SnapshotIntegrityFailure,
)
from firkin.law.ids import SandboxId
from firkin.law.snapshots import SnapshotKind
from firkin.law.volumes import VolumeKeeper
from firkin.lifetimes import Children, finish
from firkin.phases import current, mark

_BOOT_WITHIN_S = 30.0
_COPY_WITHIN_S = 600.0
_UNDO_WITHIN_S = 30.0
_BUSY = 16
_ATTEMPTS = 4


class BoxDriver:
    """Implements the law's `Driver` for one tier. `state_dir` holds disks and caches; sockets are below /run/firkin."""

    def __init__(self, state_dir: Path, tier: Tier, options: BoxOptions, ground: Ground | None = None) -> None:
        """`ground` is shared with other drivers of the server; by default this one has its own, below `state_dir`."""
        self._state = state_dir
        self._tier = tier
        self._options = options
        self._ground = ground or Ground(state_dir, ready_slots=options.ready_slots, egress_trust=options.egress_trust)
        self._trees = self._ground.trees(tier.kind, tier.layout())
        self._disks = state_dir / "disks"
        self._sockets = self._ground.run_folder(tier.kind)
        self._bases = BaseDisks(self._disks)
        self._volumes = VolumeDisks(state_dir / "volumes")
        self._keeps_volumes = True
        self._launcher: Launcher | None = None
        self._instances: dict[SandboxId, BoxInstance] = {}
        self._around = Surroundings(
            tier=tier,
            trees=self._trees,
            sockets=self._ground.sockets,
            networks=self._ground.networks,
            unled=self._ground.gateways.forget,
            disk_threads=DiskThreads(),
            background=Children(),
            released=self._released,
        )

    @property
    def name(self) -> str:
        return self._tier.name

    @property
    def captures(self) -> SnapshotKind:
        return SnapshotKind.FILESYSTEM

    @property
    def volumes(self) -> VolumeDisks:
        return self._volumes

    def share_volumes(self, keeper: VolumeKeeper) -> None:
        """See `SharesVolumes`: those of any driver that keeps them as disks."""
        if isinstance(keeper, VolumeDisks):
            self._volumes, self._keeps_volumes = keeper, False

    @property
    def egress(self) -> Keeper:
        return self._ground.keeper()

    @property
    def gateway_pids(self) -> Mapping[str, int | None]:
        return self._ground.gateways.pids

    @property
    def launcher_pid(self) -> int | None:
        return self._launcher.pid if self._launcher else None

    async def capabilities(self) -> Capabilities:
        return self._tier.capabilities(self._trees.layout)

    async def preflight(self) -> Preflight:
        return await asyncio.to_thread(self._tier.preflight, self._state)

    async def start(self) -> None:
        for folder in (self._disks, self._sockets, self._state / "launcher"):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._trees.open()
        if self._keeps_volumes:
            await self._volumes.start()
        await self._ground.open()
        try:
            await self._start_launcher()
        except BaseException:  # the ground is others', too
            await finish(self._ground.aclose(), within_s=_UNDO_WITHIN_S)
            raise

    async def _start_launcher(self) -> None:
        told = await self._tier.prepare(self._state, self._ground.run_folder(f"{self._tier.kind}-runtime"))
        self._launcher = Launcher(
            self._tier.helper,
            {
                "label": self._trees.label,
                "groups": self._trees.layout.as_object(),
                "disks": str(self._disks),
                "scratch": str(self._state / "launcher"),
                "detached": not self._options.attached_layers and takes_descriptors(),
                **told,
            },
        )
        await self._launcher.start()

    async def boot(self, plan: BootPlan) -> BoxInstance:
        if plan.sandbox_id in self._instances:
            raise BackendFailure("create sandbox", self.name, f"an instance {plan.sandbox_id!r} exists already")
        slots = await self._ground.slots()
        for attempt in range(_ATTEMPTS):
            slot = await slots.take(online=plan.network.internet and not plan.network.is_inspected)
            try:
                mark("slot")
                before = await self._ground.networks.connect(plan.sandbox_id, slot.wire, plan.network)
                async with self._volumes.mounted(plan.volumes) as mounts:
                    return await self._boot_in(plan, slot, mounts, before)
            except BaseException as error:
                await finish(self._undo(plan, slot), within_s=_UNDO_WITHIN_S)
                if attempt + 1 < _ATTEMPTS and _worth_another_try(error):
                    continue
                if isinstance(error, HelperDied):
                    raise BackendFailure("create sandbox", self.name, "the launcher was killed meanwhile") from error
                if isinstance(error, TimeoutError):
                    raise DeadlineExceeded("create sandbox", _BOOT_WITHIN_S, sandbox_id=plan.sandbox_id) from error
                raise
        raise AssertionError("the loop returns or raises")

    async def _boot_in(self, plan: BootPlan, slot: Slot, volumes: list[int], before: Traffic) -> BoxInstance:
        assert self._launcher is not None, "start() comes first"
        mark("network")
        image = await self._image(plan)
        path = str(self._sockets / plan.sandbox_id)
        report, said = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        fds: list[int] = [image]
        borrowed = (slot.user, slot.network, slot.idmap)
        launched: Launched | None = None
        link: AgentLink | None = None
        try:
            first, link = self._tier.listen(path)
            fds[:0] = [first, said, slot.user, slot.idmap, slot.network, open_tree(plan.root.base)]
            fds += [open_tree(source) for source in (*plan.root.layers, *plan.root.shared.values())]
            async with asyncio.timeout(_COPY_WITHIN_S if plan.captured else _BOOT_WITHIN_S):
                launched = await self._launcher.fork(self._order(plan, slot), [*fds, *volumes])
                mark("fork")
                _close(fds, borrowed=borrowed)
                await read_report(report)
                mark("set-up")
                await link.ready()
        except BaseException as error:
            _close(fds, borrowed=borrowed)
            if launched is not None:
                if isinstance(error, TimeoutError):  # it would have had its time; nobody else ends an agent that hangs
                    kill_pidfd(launched.pidfd, signal.SIGKILL)
                os.close(launched.pidfd)
            if link is not None:
                link.close()
            await finish(settled(report), within_s=_UNDO_WITHIN_S)
            raise
        finally:
            os.close(report)
        ref = self._ref(plan.sandbox_id, launched, slot, before)
        return self._instance(plan.sandbox_id, ref, launched.pidfd, slot, link)

    async def _image(self, plan: BootPlan) -> int:
        """The disk to begin with, opened: a fresh one or a captured one, to be copied, or the sandbox's own."""
        if plan.continues:
            return await asyncio.to_thread(_own_image, str(self._disk(plan.sandbox_id)), plan.resources.disk_bytes)
        if not plan.captured:
            base = await self._bases.image(plan.resources.disk_bytes)
            return os.open(base, os.O_RDONLY | os.O_CLOEXEC)
        try:
            image = os.open(Path(plan.captured) / IMAGE, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise BackendFailure("create sandbox", self.name, f"the captured disk cannot be read: {error}") from error
        try:
            _require_size(image, plan.resources.disk_bytes)
        except BaseException:
            os.close(image)
            raise
        return image

    def _order(self, plan: BootPlan, slot: Slot) -> LaunchOrder:
        return LaunchOrder(
            sandbox_id=str(plan.sandbox_id),
            slot=slot.numbers.slot,
            first_uid=slot.numbers.first_uid,
            loop=list(slot.loop),
            continues=plan.continues,
            restored=bool(plan.captured),
            machine_id=plan.machine_id,
            disk_bytes=plan.resources.disk_bytes,
            memory_bytes=plan.resources.memory_bytes,
            pids=plan.resources.pids,
            vcpus=plan.resources.vcpus,
            weighed="cpu" in self._trees.layout.controllers,
            layers=len(plan.root.layers),
            nofile=self._options.open_files,
            hostname=plan.hostname,
            hardened=plan.hardened,
            shared=list(plan.root.shared),
            hidden=list(plan.root.hidden),
            volumes=[(volume.path, volume.read_only) for volume in plan.volumes],
            traced=current() is not None,
        )

    def _ref(self, sandbox_id: SandboxId, launched: Launched, slot: Slot, before: Traffic) -> InstanceRef:
        facts: dict[str, int | str] = {
            "pid": launched.pid,
            "start_time": start_time(launched.pid) or 0,
            "slot": slot.numbers.slot,
            "traffic_before": before.as_text(),
            "socket": str(self._sockets / sandbox_id),
            "disk": str(self._disk(sandbox_id)),
            "booted_at": int(time.time()),
        }
        return InstanceRef(self.name, facts)

    def _instance(
        self, sandbox_id: SandboxId, ref: InstanceRef, pidfd: int, slot: Slot, link: AgentLink
    ) -> BoxInstance:
        instance = BoxInstance(sandbox_id, ref, pidfd=pidfd, slot=slot, link=link, surroundings=self._around)
        self._instances[sandbox_id] = instance
        self._ground.settle(sandbox_id, slot)
        return instance

    async def _released(self, instance: BoxInstance) -> None:
        self._instances.pop(instance.sandbox_id, None)
        await self._tier.forget(instance.sandbox_id)
        await self._vacate(instance.sandbox_id, instance.slot)

    async def _vacate(self, sandbox_id: SandboxId, slot: Slot) -> None:
        self._tier.used(slot)
        await self._ground.vacate(sandbox_id, slot)

    async def _undo(self, plan: BootPlan, slot: Slot) -> None:
        """After a failed boot: nothing of it may stay, however far it came, but the files that were there before."""
        await self._end_remains(plan.sandbox_id)
        if not plan.continues:
            await self.discard(plan.sandbox_id)
        await self._vacate(plan.sandbox_id, slot)

    async def _remove_remains(self, sandbox_id: str) -> None:
        await self._end_remains(sandbox_id)
        await self.discard(SandboxId(sandbox_id))

    async def halt(self, sandbox_id: SandboxId) -> bool:
        await self._end_remains(sandbox_id)
        path = self._disk(sandbox_id)
        waited = 0.0
        while await asyncio.to_thread(is_attached, str(path)) and waited < _UNDO_WITHIN_S:
            await asyncio.sleep(0.05)
            waited += 0.05
        return path.exists()

    async def verify(self, captured: Path) -> None:
        """One disk, and an ext4 that its own checker finds or puts in order, before the kernel is to mount it."""
        operation = "import a snapshot"
        if sorted(path.name for path in captured.iterdir()) != [IMAGE]:
            raise SnapshotIntegrityFailure(operation, None, f"it holds other files than {IMAGE}")
        try:
            await asyncio.to_thread(_put_in_order, str(captured / IMAGE))
        except BackendFailure as error:
            raise SnapshotIntegrityFailure(operation, None, f"its disk is damaged: {error}") from error

    async def _end_remains(self, sandbox_id: str) -> None:
        waited = 0.0
        while waited < 5.0:
            for pid in self._trees.members(sandbox_id):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if self._trees.remove(sandbox_id):
                break
            self._trees.lift_cpu_quota(sandbox_id)
            with suppress(OSError, KeyError):
                self._trees.freeze(sandbox_id, False)
            await asyncio.sleep(0.005)
            waited += 0.005
        await self._tier.forget(sandbox_id)
        remove_place(str(self._sockets / sandbox_id))

    async def adopt(self, sandbox_id: SandboxId, ref: InstanceRef) -> BoxInstance | None:
        facts = ref.facts
        if ref.driver != self.name or not all(key in facts for key in ("pid", "start_time", "slot", "socket")):
            return None
        pid = int(facts["pid"])
        pidfd = held_process(pid, int(facts["start_time"]), self._trees.members(sandbox_id))
        if pidfd is None:
            return None
        try:
            network = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            os.close(pidfd)
            return None
        if start_time(pid) != int(facts["start_time"]):  # again: it may have ended before the open
            os.close(network)
            os.close(pidfd)
            return None
        slot = self._ground.adopt(int(facts["slot"]))
        slot.network = network
        self._ground.networks.adopt(sandbox_id, slot.wire, Traffic.of_text(str(facts.get("traffic_before", ""))))
        return self._instance(sandbox_id, ref, pidfd, slot, self._tier.link(str(facts["socket"])))

    async def sweep(self, keep: Collection[SandboxId]) -> Sequence[str]:
        kept = {str(sandbox_id) for sandbox_id in keep}
        boxes = self._trees.boxes()
        images = {path.stem for path in self._disks.glob("*.img") if not path.name.startswith("base-")}
        sockets = {path.name for path in self._sockets.iterdir()} if self._sockets.exists() else set()
        removed = []
        noted = set(await self._tier.known())
        for orphan in sorted((boxes | images | sockets | noted) - kept):
            await self._remove_remains(orphan)
            removed.append(f"what was left of sandbox {orphan}")
        await self._ground.slots()
        return removed

    async def commit(self, sandbox_id: SandboxId, into: Path) -> None:
        if sandbox_id in self._instances:
            raise BackendFailure("commit a layer", self.name, f"sandbox {sandbox_id!r} has not ended")
        pool = await self._ground.slots()
        slot = await pool.take(online=False)
        try:
            async with asyncio.timeout(_COPY_WITHIN_S):
                await copy_layer(self._disk(sandbox_id), slot, into)
        except TimeoutError as error:
            raise DeadlineExceeded("commit a layer", _COPY_WITHIN_S, sandbox_id=sandbox_id) from error
        except OSError as error:
            raise IoFailure("commit", f"the disk of sandbox {sandbox_id!r}", error.strerror or str(error)) from error
        finally:
            pool.give_back(slot)

    async def discard(self, sandbox_id: SandboxId) -> None:
        await asyncio.to_thread(self._disk(sandbox_id).unlink, missing_ok=True)

    async def live(self) -> Sequence[SandboxId]:
        return [SandboxId(box) for box in sorted(self._trees.boxes()) if self._trees.members(box)]

    async def aclose(self) -> None:
        await self._around.background.aclose()
        for instance in list(self._instances.values()):
            instance.let_go()
        if self._launcher is not None:
            await self._launcher.aclose()
        self._around.disk_threads.close()
        if self._keeps_volumes:
            await self._volumes.aclose()
        if await asyncio.to_thread(leave_host, self._trees, self._sockets):
            await asyncio.to_thread(self._tier.leave)
        await self._ground.aclose()

    def _disk(self, sandbox_id: SandboxId) -> Path:
        return self._disks / f"{sandbox_id}.img"


def _put_in_order(image: str) -> None:
    """A disk that needs nothing stays as it is, and with it its digest."""
    if not is_in_order(image):
        repair(image)


def _require_size(image: int, wanted: int) -> None:
    size = os.fstat(image).st_size
    if size != wanted:
        detail = f"disk_bytes is {wanted}, but the files are on a disk of {size} bytes, which keeps its size"
        raise InvalidSpec("create sandbox", InvalidReason.INVALID_RESOURCES, detail)


def _own_image(path: str, wanted: int) -> int:
    """The disk that the sandbox's last run left, put in order if that ended with the host."""
    try:
        image = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise BackendFailure("resume sandbox", "the disk", f"its disk cannot be opened: {error}") from error
    try:
        _require_size(image, wanted)
        if not is_clean(image):
            repair(path)
    except BaseException:
        os.close(image)
        raise
    return image


def _worth_another_try(error: BaseException) -> bool:
    """The launcher was killed, or the slot's loop device is still bound: neither is the request's fault."""
    return isinstance(error, HelperDied) or (isinstance(error, LaunchFailed) and error.errno == _BUSY)


def _close(fds: list[int], *, borrowed: tuple[int, ...]) -> None:
    while fds:
        fd = fds.pop()
        if fd not in borrowed:
            os.close(fd)
