"""One running microVM, as the server holds it: a process handle, its control socket and its trunk."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from firkin.drivers.ground.held_instance import Around, HeldInstance
from firkin.drivers.ground.slots import Slot
from firkin.drivers.qemu.captures import STATE_SET, Capture
from firkin.drivers.qemu.late import LateChannel
from firkin.drivers.qemu.qmp import Monitor
from firkin.drivers.qemu.stores import Fit
from firkin.drivers.qemu.trunk import Trunk, TrunkChannel
from firkin.drivers.qemu.warm.process_images import Picture, ProcessImage
from firkin.host.isolation_facts import IsolationFacts
from firkin.law.capabilities import CapabilityName, Permanent
from firkin.law.driver import InstanceEnd, InstanceRef
from firkin.law.errors import BackendFailure, HostDiskFull, IoFailure, SandboxUnavailable, UnsupportedCapability
from firkin.law.ids import SandboxId
from firkin.law.isolation import Isolation, IsolationReport
from firkin.law.resources import SandboxResources
from firkin.law.states import EndCause

NAME = "qemu"
_KEPT = Permanent("a machine keeps the processors and the memory that it was booted with")
_ANSWER_S = 10.0
_FLUSH_WITHIN_S = 1.0
_BOX_GONE_WITHIN_S = 10.0
_END_SHOWS_WITHIN_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where one machine's sockets and disk are."""

    trunk: str
    reset: str
    control: str
    disk: Path

    def sockets(self) -> tuple[str, str, str]:
        return self.trunk, self.reset, self.control


@dataclass(frozen=True, slots=True)
class Folders:
    """Where one driver keeps its machines' disks and sockets."""

    disks: Path
    sockets: Path

    def disk(self, sandbox_id: str) -> Path:
        return self.disks / f"{sandbox_id}.img"

    def places(self, sandbox_id: str) -> Places:
        base, disk = self.sockets / sandbox_id, self.disk(sandbox_id)
        return Places(trunk=f"{base}.trunk", reset=f"{base}.reset", control=f"{base}.control", disk=disk)


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings(Around):
    """What all machines of one driver share.

    `released` is told of each that is gone, `written` of each store that was just written: where, its digests, and what
    there is of the process at that instant, and whether something was wanted. `picture` says how that is taken then.
    """

    released: Callable[[QemuInstance], Awaitable[None]]
    written: Callable[[Path, dict[str, str], ProcessImage | None, bool], None]
    picture: Callable[[QemuInstance], Picture | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """What a waking machine is told of itself."""

    hostname: str
    machine_id: str
    restored: bool
    hardened: bool
    pids: int


class QemuInstance(HeldInstance):
    """Implements the law's `Instance`."""

    def __init__(
        self,
        sandbox_id: SandboxId,
        ref: InstanceRef,
        *,
        pid: int,
        pidfd: int,
        slot: Slot,
        fit: Fit,
        places: Places,
        surroundings: Surroundings,
    ) -> None:
        super().__init__(sandbox_id, ref, pidfd=pidfd, slot=slot, around=surroundings)
        self.pid = pid
        self.fit = fit
        self._places = places
        self._around = surroundings
        self._monitor: Monitor | None = None
        self._trunk: Trunk | None = None
        self._opening = asyncio.Lock()
        self._standing = asyncio.Lock()
        self.frozen = False
        self._was_written = False
        self.stood_still_s = 0.0  # for the last capture of one that ran
        self.kernel_release = ""

    # -- bytes ----------------------------------------------------------------------------------

    async def dial(self) -> TrunkChannel | LateChannel:
        self._require_alive("reach the agent")
        if self.frozen and (self._trunk is None or self._trunk.closed):
            return LateChannel(self._dial)
        return await self._dial()

    async def _dial(self) -> TrunkChannel:
        try:
            return await (await self.trunk()).dial()
        except (OSError, TimeoutError) as error:
            raise SandboxUnavailable("reach the agent", self._id, str(error) or "it does not answer") from error

    async def trunk(self, *, within_s: float | None = None) -> Trunk:
        """The session with the agent; a new one where there is none. `OSError`, `TimeoutError`."""
        async with self._opening:
            if self._trunk is None or self._trunk.closed:
                patience = within_s or (3600.0 if self.frozen else _ANSWER_S)
                self._trunk = await Trunk.open(self._places.trunk, self._places.reset, within_s=patience)
            return self._trunk

    async def monitor(self) -> Monitor:
        """Raises `BackendFailure` when QEMU does not answer."""
        if self._monitor is None or not self._monitor.is_open:
            try:
                self._monitor = await Monitor.connect(self._places.control, within_s=_ANSWER_S)
            except (OSError, TimeoutError) as error:
                raise BackendFailure("reach the machine", NAME, str(error) or "it does not answer") from error
        return self._monitor

    async def _command(self, command: str) -> None:
        """Have QEMU do something. `SandboxUnavailable` when it has ended, `BackendFailure`."""
        try:
            await (await self.monitor()).ask(command)
        except BackendFailure:
            await self._require_survival(command)
            raise

    async def _require_survival(self, operation: str) -> None:
        """It failed: `SandboxUnavailable` if because it has ended, which shows a little after its sockets' end."""
        await asyncio.wait({self._end}, timeout=_END_SHOWS_WITHIN_S)
        self._require_alive(operation)

    async def resize(self, resources: SandboxResources) -> None:
        raise UnsupportedCapability("change the limits", CapabilityName.RUNTIME_CREATE, _KEPT)

    async def dial_port(self, port: int) -> None:
        """Only the agent can make one: the machine's loopback is its own."""

    # -- its life -------------------------------------------------------------------------------

    async def flush(self) -> None:
        """Bring what programs wrote from the machine's memory to its disk, if its agent answers soon."""
        if not self.frozen:
            with suppress(OSError, TimeoutError):
                trunk = await self.trunk(within_s=_FLUSH_WITHIN_S)
                await trunk.ask("flush", within_s=_FLUSH_WITHIN_S)

    async def _before_kill(self) -> None:
        await self.flush()

    async def settle(self, names: Names) -> str:
        """Make it this sandbox's machine: time, randomness, names, address. The release of its kernel.

        Raises `OSError`, `TimeoutError`, `BackendFailure`.
        """
        trunk = await self.trunk()
        numbers = self.slot.numbers
        answer = await trunk.ask(
            "settle",
            within_s=_ANSWER_S,
            epoch_ns=time.time_ns(),
            seed=secrets.token_hex(64),
            hostname=names.hostname,
            machine_id=names.machine_id,
            boot_id=str(uuid.uuid4()),
            restored=names.restored,
            hardened=names.hardened,
            pids=names.pids,
            address=numbers.guest_address,
            netmask="255.255.255.252",
            gateway=numbers.host_address,
        )
        return _short(answer.get("kernel"))

    async def go(self) -> None:
        """Let a machine run that was woken, or stands still. `BackendFailure`."""
        await self._command("cont")
        self.frozen = False
        if self._was_written:
            self._was_written = False
            with suppress(BackendFailure):
                await (await self.monitor()).ask("remove-fd", fdset_id=STATE_SET)

    async def freeze(self) -> None:
        self._require_alive("freeze")
        async with self._standing:
            if not self.frozen:
                await self.flush()
                await self._command("stop")
                self.frozen = True

    async def thaw(self) -> None:
        self._require_alive("thaw")
        async with self._standing:
            if self.frozen:
                await self._run_on()

    async def _run_on(self) -> None:
        """Its clock stood still with it."""
        await self.go()
        await self._tell_time()

    async def _tell_time(self) -> None:
        with suppress(OSError, TimeoutError):  # an agent that does not answer is the engine's to find out
            trunk = await self.trunk()
            await trunk.ask("clock", within_s=_ANSWER_S, epoch_ns=time.time_ns(), seed=secrets.token_hex(64))

    async def reclaim(self) -> None:
        """The host swaps out what it needs: the memory of a machine that stands still is not touched."""

    async def capture(self, into: Path, *, room_bytes: int) -> None:
        """Standing still for as long as writing down what it changed takes, unless it is already."""
        self._require_alive("capture")
        picture = self._around.picture(self)
        work = Capture(self.pid, self.fit, self._places.disk, into, picture)
        try:
            await work.prepare(room_bytes)
            async with self._held():
                self._was_written = True
                await work.write(await self.monitor())
                self._require_alive("capture")  # ended meanwhile: what was read may be of nobody
            digests = await work.finish()
            self._around.written(into, digests, work.image(), picture is not None)
        except BackendFailure:
            await self._require_survival("capture")
            raise
        except OSError as error:
            await self._require_survival("capture")
            if HostDiskFull.explains(error):
                raise HostDiskFull("capture a snapshot") from error
            raise IoFailure("capture", f"the machine of sandbox {self._id!r}", error.strerror or str(error)) from error
        finally:
            work.drop()

    @asynccontextmanager
    async def _held(self) -> AsyncIterator[None]:
        async with self._standing:
            if self.frozen:
                yield
                return
            await self.flush()
            await self._command("stop")
            stopped = time.monotonic()
            self.frozen = True
            try:
                yield
            finally:
                if not self._requested and not self._end.done():
                    await self.go()
                    self.stood_still_s = time.monotonic() - stopped
                    await self._tell_time()

    # -- what it uses and reaches ---------------------------------------------------------------

    async def usage(self) -> Mapping[str, int]:
        usage = self._trees.usage(self._id)
        with suppress(OSError):
            usage["disk_used_bytes"] = self._places.disk.stat().st_blocks * 512
        return usage

    async def isolation(self) -> IsolationReport:
        """Of QEMU's process: whoever breaks out of the machine is that."""
        self._require_alive("look at the isolation")
        facts = IsolationFacts()
        await asyncio.to_thread(facts.of_process, self.pid)
        facts.read("accelerator", lambda: self.fit.shape.accelerator)
        release = await self._release()
        facts.read("kernel_release", lambda: release)
        await asyncio.to_thread(self._facts_of_the_ground, facts)
        self._require_alive("look at the isolation")
        return IsolationReport(
            tier=Isolation.MICROVM,
            driver=NAME,
            process="the virtual machine's process",
            unread=facts.unread,
            **facts.found,
        )

    async def _release(self) -> str:
        """Of the kernel inside, as it says itself; empty where it cannot say anything now."""
        if self.frozen:
            return self.kernel_release
        with suppress(OSError, TimeoutError):
            answer = await (await self.trunk()).ask("about", within_s=_ANSWER_S)
            self.kernel_release = _short(answer.get("kernel"))
        return self.kernel_release

    # -- its end --------------------------------------------------------------------------------

    def _decide(self) -> None:
        super()._decide()
        self._hang_up()

    def _why(self) -> InstanceEnd:
        if self._requested:
            return InstanceEnd(EndCause.REQUESTED)
        if self._trees.agent_oom_kills(self._id):
            return InstanceEnd(EndCause.OUT_OF_MEMORY, "the host's kernel ended its virtual machine: memory limit")
        return InstanceEnd(EndCause.AGENT_DIED, "its virtual machine ended")

    def _hang_up(self) -> None:
        if self._trunk is not None:
            self._trunk.abort()
        if self._monitor is not None:
            self._monitor.close()

    async def _take_apart(self) -> None:
        self._hang_up()
        if self._trunk is not None:
            await self._trunk.aclose()
        waited = 0.0
        while not self._trees.remove(self._id) and waited < _BOX_GONE_WITHIN_S:
            await asyncio.sleep(0.002)
            waited += 0.002
        for path in self._places.sockets():
            with suppress(FileNotFoundError):
                os.unlink(path)
        await self._around.released(self)


def _short(said: object) -> str:
    """What a guest says of itself is no longer than it need be."""
    return said[:100] if isinstance(said, str) else ""
