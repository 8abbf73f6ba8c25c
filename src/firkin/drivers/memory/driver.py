"""The driver: instances of this process, found again by any engine that holds the same driver object."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from firkin.drivers.memory import captures
from firkin.drivers.memory.agent import Connection, Operation, Stream, greeting
from firkin.drivers.memory.faults import DriverFaults
from firkin.drivers.memory.file_operations import FILE_OPERATIONS
from firkin.drivers.memory.machine import Machine
from firkin.drivers.memory.pipes import MemoryChannel, connection
from firkin.drivers.memory.process_operations import PROCESS_OPERATIONS
from firkin.drivers.memory.tree import Fault, Tree
from firkin.drivers.memory.watch_operations import WATCH_OPERATIONS
from firkin.law.backend import Preflight
from firkin.law.capabilities import AGENT_CAPABILITIES, Capabilities, CapabilityName, Permanent
from firkin.law.driver import BootPlan, InstanceEnd, InstanceRef
from firkin.law.errors import (
    BackendFailure,
    CapacityRejected,
    HostDiskFull,
    InvalidReason,
    InvalidSpec,
    IoFailure,
    SandboxUnavailable,
    UnsupportedCapability,
)
from firkin.law.ids import SandboxId
from firkin.law.isolation import IsolationReport
from firkin.law.network import NetworkPolicy
from firkin.law.network_use import RefusedFlow
from firkin.law.resources import SandboxResources
from firkin.law.snapshots import SnapshotKind
from firkin.law.states import EndCause
from firkin.lifetimes import finish
from firkin.wire.codec import Object

CAPTURE_WITHIN_S = 600.0
MEMORY_BYTES = 1 << 20  # what an instance counts as using beside its files: there is no kernel to ask

NO_NETWORK = Permanent("instances in memory have no network")

NO_ISOLATION = "it is simulated inside the server's own process, so there is nothing to read"

_C = CapabilityName
_SUPPORTED = (
    _C.SANDBOX_STOP,
    _C.SANDBOX_KILL,
    _C.SANDBOX_DELETE,
    _C.SNAPSHOT_CAPTURE,
    _C.SNAPSHOT_RESTORE,
    _C.PAUSE_CAPTURE,
    _C.PAUSE_RESUME,
    _C.TEMPLATE_READY,
    _C.PORTS_EXPOSE,
    *AGENT_CAPABILITIES,
)


async def _hello(machine: Machine, stream: Stream, facts: Object) -> None:
    stream.result(greeting(machine, ""))


OPERATIONS: Mapping[str, Operation] = {
    **PROCESS_OPERATIONS,
    **FILE_OPERATIONS,
    **WATCH_OPERATIONS,
    "hello": _hello,
}


class MemoryInstance:
    """One computer in this process. `left` are the files of the one that it continues."""

    def __init__(
        self, plan: BootPlan, faults: DriverFaults, left: Tree | None = None, *, driver: str = "memory"
    ) -> None:
        self._driver = driver
        self.boot = secrets.token_hex(8)
        self.machine = Machine(plan, left)
        self._faults = faults
        self._sandbox_id = plan.sandbox_id
        self._end: asyncio.Future[InstanceEnd] = asyncio.get_running_loop().create_future()

    @property
    def sandbox_id(self) -> SandboxId:
        return self._sandbox_id

    @property
    def ref(self) -> InstanceRef:
        return InstanceRef(self._driver, {"boot": self.boot})

    @property
    def alive(self) -> bool:
        return not self._end.done()

    async def dial(self) -> MemoryChannel:
        if not self.alive or self.machine.halted:
            raise SandboxUnavailable("reach agent", self._sandbox_id, "the instance has ended")
        ours, theirs = connection()
        served = Connection(self.machine, theirs, OPERATIONS, self.boot)
        task = self.machine.background(served.serve, name="agent connection")
        task.add_done_callback(lambda _: theirs.hang_up())  # also when it was ended before it began
        return ours

    async def ended(self) -> InstanceEnd:
        return await asyncio.shield(self._end)

    async def destroy(self) -> None:
        await self._faults.before_end()
        await self.finish(InstanceEnd(EndCause.REQUESTED))

    async def finish(self, end: InstanceEnd) -> None:
        """End it for the reason in `end`, unless it has ended already."""
        await self.machine.halt()
        if self.alive:
            self._end.set_result(end)

    async def freeze(self) -> None:
        self._faults.before_freeze()
        self.machine.gate.shut()

    async def thaw(self) -> None:
        self._faults.before_thaw()
        self.machine.gate.open()

    async def reclaim(self) -> None:
        """Nothing can be given back: what an instance remembers is this process's own memory."""

    async def capture(self, into: Path, *, room_bytes: int) -> None:
        """Its files are copied between two steps of the event loop, in which nothing inside can run."""
        if not self.alive:
            raise BackendFailure("capture files", "memory", "the instance has ended")
        self._faults.before_capture()
        if self.machine.tree.used > room_bytes:
            raise CapacityRejected(
                "capture files",
                "free disk on the host",
                requested=self.machine.tree.used,
                available=room_bytes,
                unit="bytes",
            )
        await self.write_files(into, "capture files")

    async def write_files(self, into: Path, operation: str) -> None:
        """`HostDiskFull`, `IoFailure`."""
        work = asyncio.to_thread(captures.write, captures.copied(self.machine.tree), into)
        try:
            await finish(work, within_s=CAPTURE_WITHIN_S)
        except OSError as error:
            if HostDiskFull.explains(error):
                raise HostDiskFull(operation) from error
            raise IoFailure(f"{operation} in", str(into), error.strerror or str(error)) from error

    async def dial_port(self, port: int) -> None:
        """Only the agent makes connections inside."""
        return

    async def set_network(self, policy: NetworkPolicy) -> None:
        """With internet or without is the same here: there is none."""
        if policy.is_finer:
            raise UnsupportedCapability("set the network policy", _C.NETWORK_POLICY, NO_NETWORK)

    async def network(self) -> None:
        """There is no traffic to count."""
        return

    async def refused(self) -> Sequence[RefusedFlow]:
        return ()

    async def resize(self, resources: SandboxResources) -> None:
        """Nothing limits it."""

    async def isolation(self) -> IsolationReport:
        """Nothing holds it in: its programs are simulated by the process that this is."""
        if not self.alive:
            raise SandboxUnavailable("look at the isolation", self._sandbox_id, "the instance has ended")
        return IsolationReport.without_facts("none", self.ref.driver, NO_ISOLATION)

    async def usage(self) -> Mapping[str, int]:
        """No CPU time is measured and nothing is ever killed for memory here; files count as memory and as disk."""
        return {
            "cpu_us": 0,
            "memory_bytes": MEMORY_BYTES + self.machine.tree.used,
            "memory_cache_bytes": 0,
            "disk_used_bytes": self.machine.tree.used,
            "oom_kills": 0,
        }


class MemoryDriver:
    """Instances without a kernel. `faults` lets a test make the next boots fail or wait.

    Under other names several of them can play the tiers of one server.
    """

    def __init__(self, name: str = "memory") -> None:
        self._name = name
        self.faults = DriverFaults()
        self._instances: dict[SandboxId, MemoryInstance] = {}

    @classmethod
    def from_settings(cls, state_dir: Path, options: Mapping[str, str]) -> MemoryDriver:
        """Nothing is kept in `state_dir`; there are no options, and unknown ones are refused by name."""
        if options:
            raise InvalidSpec(
                "make driver",
                InvalidReason.INVALID_SETTINGS,
                f"the memory driver has no options, but was given {', '.join(sorted(options))}",
            )
        return cls()

    @property
    def name(self) -> str:
        return self._name

    @property
    def egress(self) -> None:
        return None

    @property
    def captures(self) -> SnapshotKind:
        return SnapshotKind.FILESYSTEM

    @property
    def volumes(self) -> None:
        """Files in memory do not outlive the process, so there is nothing that could be called a volume."""
        return None

    async def capabilities(self) -> Capabilities:
        refused = Capabilities.all_unsupported(Permanent("the memory driver does not offer it"))
        return refused.with_unsupported(NO_NETWORK, _C.NETWORK_POLICY, _C.PORTS_DOMAIN_PROXY).with_supported(
            *_SUPPORTED
        )

    async def preflight(self) -> Preflight:
        return Preflight(ready=True)

    async def start(self) -> None:
        """Nothing needs to be made ready."""

    async def boot(self, plan: BootPlan) -> MemoryInstance:
        former = self._former(plan)
        instance = MemoryInstance(plan, self.faults, former.machine.tree if former else None, driver=self._name)
        self._instances[plan.sandbox_id] = instance
        try:
            await self.faults.before_boot()
            await self._furnish(instance)
        except BaseException:
            await finish(self._undo(instance, former), within_s=5)
            raise
        return instance

    def _former(self, plan: BootPlan) -> MemoryInstance | None:
        """The ended instance whose files the new one continues, None for one of its own."""
        former = self._instances.get(plan.sandbox_id)
        if former is None and plan.continues:
            raise BackendFailure("boot instance", self.name, f"no instance {plan.sandbox_id!r} left any files")
        if former is not None and (former.alive or not plan.continues):
            raise BackendFailure("boot instance", self.name, f"an instance {plan.sandbox_id!r} exists already")
        return former

    async def _furnish(self, instance: MemoryInstance) -> None:
        machine = instance.machine
        try:
            if machine.plan.continues:  # no thread may go on with files that a cancelled boot gives back
                machine.furnish()
            else:
                await asyncio.to_thread(machine.furnish)
        except Fault as fault:
            raise BackendFailure("boot instance", self.name, fault.message) from fault

    async def _undo(self, instance: MemoryInstance, former: MemoryInstance | None) -> None:
        if former is None:
            del self._instances[instance.sandbox_id]
        else:
            self._instances[instance.sandbox_id] = former
        await instance.destroy()

    async def adopt(self, sandbox_id: SandboxId, ref: InstanceRef) -> MemoryInstance | None:
        instance = self._instances.get(sandbox_id)
        if instance is None or not instance.alive or instance.ref != ref:
            return None
        return instance

    async def sweep(self, keep: Collection[SandboxId]) -> Sequence[str]:
        removed = []
        for sandbox_id in [known for known in self._instances if known not in keep]:
            await self._instances[sandbox_id].destroy()
            await self.discard(sandbox_id)
            removed.append(f"instance {sandbox_id}")
        return removed

    async def halt(self, sandbox_id: SandboxId) -> bool:
        instance = self._instances.get(sandbox_id)
        if instance is not None:
            await instance.destroy()
        return instance is not None

    async def verify(self, captured: Path) -> None:
        """Nothing: whatever is read at a boot is taken for a stranger's anyway."""

    async def commit(self, sandbox_id: SandboxId, into: Path) -> None:
        instance = self._instances.get(sandbox_id)
        if instance is None or instance.alive:
            raise BackendFailure("commit a layer", self.name, f"no ended instance {sandbox_id!r} left any files")
        await instance.write_files(into, "commit a layer")

    async def discard(self, sandbox_id: SandboxId) -> None:
        instance = self._instances.get(sandbox_id)
        if instance is not None and not instance.alive:
            del self._instances[sandbox_id]

    async def live(self) -> Sequence[SandboxId]:
        return [sandbox_id for sandbox_id, instance in self._instances.items() if instance.alive]

    async def held(self) -> Sequence[SandboxId]:
        """Every instance whose files exist, running or not."""
        return list(self._instances)

    async def crash(self, sandbox_id: SandboxId, cause: EndCause, detail: str = "") -> None:
        """For tests: the instance ends by itself, for that cause."""
        with suppress(KeyError):
            await self._instances[sandbox_id].finish(InstanceEnd(cause, detail))

    async def aclose(self) -> None:
        """Instances live on, as long as this object does."""
