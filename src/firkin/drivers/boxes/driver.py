"""Law's `Driver` over a launcher, slots, disks and control groups, for one tier of those that need all four."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path

from firkin.drivers.boxes.captures import IMAGE, DiskThreads
from firkin.drivers.boxes.commits import copy_layer
from firkin.drivers.boxes.discards import Discards
from firkin.drivers.boxes.instance import BoxInstance, Surroundings
from firkin.drivers.boxes.launcher import Launcher, LaunchFailed
from firkin.drivers.boxes.launches import BOOT_WITHIN_S, COPY_WITHIN_S, Launches
from firkin.drivers.boxes.links import AgentLink, remove_place
from firkin.drivers.boxes.options import BoxOptions
from firkin.drivers.boxes.preforks import BoxKind, Prefork, WholeBox, bounds, is_there
from firkin.drivers.boxes.tier import Ahead, Tier
from firkin.drivers.boxes.volumes import VolumeDisks
from firkin.drivers.ground.gateways import Keeper
from firkin.drivers.ground.ground import Ground, leave_host
from firkin.drivers.ground.helper_process import HelperDied
from firkin.drivers.ground.process_table import held_process, start_time
from firkin.drivers.ground.shelf import Shelf
from firkin.drivers.ground.slots import Slot
from firkin.host.base_disks import BaseDisks, is_in_order, repair
from firkin.host.disks import is_attached
from firkin.host.netlink import Traffic
from firkin.host.overlays import takes_descriptors
from firkin.host.stoppable import in_thread
from firkin.host.syscalls import kill_pidfd
from firkin.law.backend import Preflight
from firkin.law.capabilities import Capabilities
from firkin.law.driver import BootPlan, InstanceRef, RootFilesystem
from firkin.law.errors import (
    BackendFailure,
    DeadlineExceeded,
    IoFailure,
    SnapshotIntegrityFailure,
)
from firkin.law.ids import SandboxId
from firkin.law.resources import SandboxResources
from firkin.law.snapshots import SnapshotKind
from firkin.law.volumes import VolumeKeeper
from firkin.lifetimes import Children, children, finish
from firkin.phases import mark

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
        self._discards = Discards(self._disks)
        self._volumes = VolumeDisks(state_dir / "volumes")
        self._keeps_volumes = True
        self._launches: Launches | None = None
        usual = (BoxKind.of(SandboxResources()),) if tier.ahead is Ahead.HALF else ()
        limits = bounds(tier.ahead, options.ready_boxes)
        self._preforks = Shelf(self._made_ahead, self._end_prefork, limits, first=usual, has_room=is_there)
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
        return self._launches.launcher.pid if self._launches else None

    async def capabilities(self) -> Capabilities:
        return self._tier.capabilities(self._trees.layout)

    async def preflight(self) -> Preflight:
        return await in_thread(lambda _: self._tier.preflight(self._state))  # it makes folders

    async def start(self) -> None:
        for folder in (self._disks, self._sockets, self._state / "launcher"):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        await in_thread(lambda _: self._discards.sweep())
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
        launcher = Launcher(
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
        await launcher.start()
        self._launches = Launches(
            tier=self._tier,
            launcher=launcher,
            layout=self._trees.layout,
            disks=self._disks,
            sockets=self._sockets,
            bases=self._bases,
            open_files=self._options.open_files,
        )

    async def boot(self, plan: BootPlan) -> BoxInstance:
        if plan.sandbox_id in self._instances:
            raise BackendFailure("create sandbox", self.name, f"an instance {plan.sandbox_id!r} exists already")
        self._preforks.start()  # a tier that is first wanted long after the server's start is never swept
        whole = self._tier.ahead is Ahead.WHOLE
        kind = BoxKind.of(plan.resources, plan.root if plan.repeats else None, online=_is_online(plan), whole=whole)
        could_be_ready = _is_fresh(plan) and (kind.root is not None or not whole)
        with self._preforks.launching(kind) if could_be_ready else nullcontext():
            return await self._boot(plan)

    async def _boot(self, plan: BootPlan) -> BoxInstance:
        slots = await self._ground.slots()
        for attempt in range(_ATTEMPTS):
            waiting = await self._waiting(plan)
            slot = waiting.slot if waiting is not None else await slots.take(online=_is_online(plan))
            try:
                mark("slot")
                async with self._volumes.mounted(plan.volumes) as mounts:
                    return await self._boot_in(plan, slot, mounts, waiting)
            except BaseException as error:
                if waiting is not None:
                    waiting.close()
                await finish(self._undo(plan, slot), within_s=_UNDO_WITHIN_S)
                if attempt + 1 < _ATTEMPTS and _worth_another_try(error):
                    continue
                if isinstance(error, HelperDied):
                    raise BackendFailure("create sandbox", self.name, "a helper was killed meanwhile") from error
                if isinstance(error, TimeoutError):
                    raise DeadlineExceeded("create sandbox", BOOT_WITHIN_S, sandbox_id=plan.sandbox_id) from error
                raise
        raise AssertionError("the loop returns or raises")

    async def _boot_in(
        self, plan: BootPlan, slot: Slot, volumes: list[int], waiting: Prefork | WholeBox | None
    ) -> BoxInstance:
        assert self._launches is not None, "start() comes first"
        connect = self._ground.networks.connect(plan.sandbox_id, slot.wire, plan.network)
        async with children() as beside:  # an agent does nothing before it is asked to, which is after both
            connecting = beside.start(connect, name=f"connect {plan.sandbox_id}")
            if isinstance(waiting, WholeBox):
                born = await self._launches.assign(plan, waiting)
            else:
                born = await self._launches.launch(plan, slot, volumes, waiting)
            try:
                before = await connecting
            except BaseException:
                born.end()
                raise
        mark("network")
        ref = self._ref(plan.sandbox_id, born.launched.pid, born.began, slot, before)
        return self._instance(plan.sandbox_id, ref, born.launched.pidfd, slot, born.link)

    def prepared(self, isolation: str, root: RootFilesystem, resources: SandboxResources) -> SandboxId | None:
        """See `PreparesInstances`. It has one tier, whatever is asked for."""

        def furnished(kind: BoxKind) -> bool:
            return kind.root is not None and fits(kind)

        def fits(kind: BoxKind) -> bool:
            return kind.fits(resources, root)

        boxes = self._preforks
        ready = boxes.promise(furnished) or boxes.promise(fits)
        # A whole one is made no sooner than a sandbox, and has more done to it.
        return ready or (boxes.promise_unfinished(furnished) if self._tier.ahead is Ahead.HALF else None)

    async def _waiting(self, plan: BootPlan) -> Prefork | WholeBox | None:
        """The box that was made ahead under the plan's name, if it is one that the plan fits."""
        waiting = await self._preforks.take(plan.sandbox_id)
        if waiting is None or (_is_fresh(plan) and waiting.fits(plan)):
            return waiting
        await finish(self._end_prefork(waiting), within_s=_UNDO_WITHIN_S)
        return None

    async def _made_ahead(self, sandbox_id: SandboxId, kind: BoxKind) -> Prefork | WholeBox:
        assert self._launches is not None, "start() comes first"
        slot = await (await self._ground.slots()).take(online=kind.online)
        try:
            make = self._launches.whole if self._tier.ahead is Ahead.WHOLE else self._launches.prefork
            return await make(sandbox_id, kind, slot)
        except BaseException:
            await finish(self._remove_prefork(sandbox_id, slot), within_s=_UNDO_WITHIN_S)
            raise

    async def _end_prefork(self, prefork: Prefork | WholeBox) -> None:
        kill_pidfd(prefork.launched.pidfd, signal.SIGKILL)
        prefork.close()
        await self._remove_prefork(prefork.sandbox_id, prefork.slot)

    async def _remove_prefork(self, sandbox_id: SandboxId, slot: Slot) -> None:
        await self._end_remains(sandbox_id)
        await self._discards.discard(self._disk(sandbox_id))
        await self._vacate(sandbox_id, slot)

    def _ref(self, sandbox_id: SandboxId, pid: int, began: int, slot: Slot, before: Traffic) -> InstanceRef:
        facts: dict[str, int | str] = {
            "pid": pid,
            "start_time": began,
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
        kept = {str(sandbox_id) for sandbox_id in keep} | self._preforks.names
        boxes = self._trees.boxes()
        images = {path.stem for path in self._disks.glob("*.img") if not path.name.startswith("base-")}
        sockets = {path.name for path in self._sockets.iterdir()} if self._sockets.exists() else set()
        removed = []
        noted = set(await self._tier.known())
        for orphan in sorted((boxes | images | sockets | noted) - kept):
            await self._remove_remains(orphan)
            removed.append(f"what was left of sandbox {orphan}")
        await self._ground.slots()
        self._preforks.start()
        return removed

    async def commit(self, sandbox_id: SandboxId, into: Path) -> None:
        if sandbox_id in self._instances:
            raise BackendFailure("commit a layer", self.name, f"sandbox {sandbox_id!r} has not ended")
        pool = await self._ground.slots()
        slot = await pool.take(online=False)
        try:
            async with asyncio.timeout(COPY_WITHIN_S):
                await copy_layer(self._disk(sandbox_id), slot, into)
        except TimeoutError as error:
            raise DeadlineExceeded("commit a layer", COPY_WITHIN_S, sandbox_id=sandbox_id) from error
        except OSError as error:
            raise IoFailure("commit", f"the disk of sandbox {sandbox_id!r}", error.strerror or str(error)) from error
        finally:
            pool.give_back(slot)

    async def discard(self, sandbox_id: SandboxId) -> None:
        await self._preforks.end(sandbox_id)
        await self._discards.discard(self._disk(sandbox_id))

    async def live(self) -> Sequence[SandboxId]:
        boxes = self._trees.boxes() - self._preforks.names
        return [SandboxId(box) for box in sorted(boxes) if self._trees.members(box)]

    async def aclose(self) -> None:
        await self._preforks.aclose()
        await self._around.background.aclose()
        for instance in list(self._instances.values()):
            instance.let_go()
        if self._launches is not None:
            await self._launches.launcher.aclose()
        self._around.disk_threads.close()
        await asyncio.to_thread(self._discards.close)
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


def _is_online(plan: BootPlan) -> bool:
    """Whether its slot is one that reaches the internet by itself."""
    return plan.network.internet and not plan.network.is_inspected


def _is_fresh(plan: BootPlan) -> bool:
    """It begins with an empty disk."""
    return not plan.captured and not plan.continues


def _worth_another_try(error: BaseException) -> bool:
    """The launcher was killed, or the slot's loop device is still bound: neither is the request's fault."""
    return isinstance(error, HelperDied) or (isinstance(error, LaunchFailed) and error.errno == _BUSY)
