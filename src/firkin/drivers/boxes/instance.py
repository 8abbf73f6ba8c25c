"""One running sandbox, as the server holds it: a handle of its first process, the way to its agent, a slot."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from firkin.channels import SocketChannel, over_socket
from firkin.drivers.boxes.captures import DiskCapture, DiskThreads
from firkin.drivers.boxes.freezer import Freezer
from firkin.drivers.boxes.links import AgentLink, remove_place
from firkin.drivers.boxes.tier import Tier
from firkin.drivers.ground.held_instance import Around, HeldInstance
from firkin.drivers.ground.slots import Slot
from firkin.host import cgroups
from firkin.host.disks import loop_is_bound
from firkin.host.isolation_facts import IsolationFacts
from firkin.host.netns_sockets import NamespaceSockets
from firkin.host.superblocks import last_error_at
from firkin.law.capabilities import CapabilityName, Permanent
from firkin.law.driver import InstanceEnd, InstanceRef
from firkin.law.errors import (
    BackendFailure,
    CapacityRejected,
    HostDiskFull,
    IoFailure,
    PortFailure,
    SandboxUnavailable,
    UnsupportedCapability,
)
from firkin.law.ids import SandboxId
from firkin.law.isolation import IsolationReport
from firkin.law.ports import ByteChannel
from firkin.law.resources import SandboxResources
from firkin.law.states import EndCause
from firkin.phases import mark

_CAPTURE = "capture a snapshot"
_KEPT = Permanent("a sandbox of this tier keeps the limits that it was booted with")
_NOBODY = (errno.ECONNREFUSED, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.ENETUNREACH)
_LOOPBACKS = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))
_DIAL_WITHIN_S = 5.0
_BOX_GONE_WITHIN_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings(Around):
    """What all boxes of one driver share. `released` is told of each that is gone."""

    tier: Tier
    sockets: NamespaceSockets
    disk_threads: DiskThreads
    released: Callable[[BoxInstance], Awaitable[None]]


class BoxInstance(HeldInstance):
    """Implements the law's `Instance`."""

    def __init__(
        self,
        sandbox_id: SandboxId,
        ref: InstanceRef,
        *,
        pidfd: int,
        slot: Slot,
        link: AgentLink,
        surroundings: Surroundings,
    ) -> None:
        super().__init__(sandbox_id, ref, pidfd=pidfd, slot=slot, around=surroundings)
        self._link = link
        self._around = surroundings
        self._freezer = Freezer(surroundings.trees, sandbox_id)

    @property
    def socket_path(self) -> str:
        return str(self._ref.facts["socket"])

    async def dial(self) -> ByteChannel:
        self._require_alive("reach the agent")
        try:
            return await self._link.dial(_DIAL_WITHIN_S)
        except (OSError, TimeoutError) as error:
            raise SandboxUnavailable("reach the agent", self._id, str(error) or "it does not answer") from error

    async def _before_kill(self) -> None:
        self._freezer.release()

    async def freeze(self) -> None:
        self._require_alive("freeze")
        self._link.forget_calls()  # a frozen agent greets nobody
        await self._freezer.freeze()

    async def thaw(self) -> None:
        self._require_alive("thaw")
        await self._freezer.thaw()

    async def reclaim(self) -> None:
        if not self._end.done():
            await self._freezer.reclaim()

    async def trim(self) -> int:
        """Give back to the host what was deleted on its disk; meant for one that stands still. How many bytes."""
        self._require_alive("trim")
        threads = self._around.disk_threads
        work = DiskCapture(self._ref, Path(), loop=self.slot.numbers.loop, root_of=self._root_of)
        given_back = 0

        def give_back() -> None:
            nonlocal given_back
            given_back = work.give_back()

        async with threads.turn():
            await threads.run(give_back, work.stop)
        return given_back

    async def capture(self, into: Path, *, room_bytes: int) -> None:
        """Frozen for what was not written out before, and for the copy."""
        self._require_alive("capture")
        work = DiskCapture(self._ref, into, loop=self.slot.numbers.loop, root_of=self._root_of)
        threads = self._around.disk_threads
        try:
            async with threads.turn():
                await threads.run(work.prepare, work.stop)
                mark("written out")
                _require_room(Path(str(self._ref.facts["disk"])), room_bytes)
                async with self._freezer.held():
                    await threads.run(work.copy, work.stop)
                    self._require_alive("capture")  # killed during the copy: it may hold the disk of another instant
                mark("copied")
        except OSError as error:
            self._require_alive("capture")
            if HostDiskFull.explains(error):
                raise HostDiskFull(_CAPTURE) from error
            raise IoFailure("capture", f"the disk of sandbox {self._id!r}", error.strerror or str(error)) from error

    def _root_of(self, pid: int) -> int:
        return self._around.tier.root(pid, self._trees.members(self._id))

    async def resize(self, resources: SandboxResources) -> None:
        self._require_alive("change the limits")
        if not self._around.tier.resizes:
            raise UnsupportedCapability("change the limits", CapabilityName.RUNTIME_CREATE, _KEPT)
        limits = cgroups.Limits(resources.memory_bytes, resources.pids, resources.vcpus)
        if unmet := self._trees.resize(self._id, limits):
            raise BackendFailure("change the limits", self._ref.driver, "; ".join(unmet))

    async def dial_port(self, port: int) -> SocketChannel | None:
        """Past the agent: a socket of the sandbox's own network namespace, connected to its loopback.

        Whoever listens can send bytes and nothing else: it gets no descriptor of ours,
        and no address of the host's is in reach of a socket that was made in there.
        """
        if not self._around.tier.has_hosts_loopback:
            return None
        try:
            async with asyncio.timeout(_DIAL_WITHIN_S):
                for family, address in _LOOPBACKS:
                    if (channel := await self._connected(family, address, port)) is not None:
                        return channel
        except TimeoutError as error:
            raise PortFailure("connect", port, f"port {port} did not answer within {_DIAL_WITHIN_S:g} s") from error
        except OSError as error:
            raise PortFailure("connect", port, f"port {port}: {error.strerror or error}") from error
        raise PortFailure("connect", port, f"nothing listens on port {port}", refused=True)

    async def _connected(self, family: int, address: str, port: int) -> SocketChannel | None:
        """None when nobody listens there."""
        self._require_alive("connect to a port")
        made = await self._around.sockets.make(self.slot.network, family)
        try:
            await asyncio.get_running_loop().sock_connect(made, (address, port))
            self._require_alive("connect to a port")  # the slot's next tenant would be the one that answered
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return await over_socket(made)
        except OSError as error:
            made.close()
            if error.errno in _NOBODY:
                return None
            raise
        except BaseException:
            made.close()
            raise

    async def usage(self) -> Mapping[str, int]:
        usage = self._trees.usage(self._id)
        image = Path(str(self._ref.facts["disk"]))
        with suppress(OSError):
            usage["disk_used_bytes"] = image.stat().st_blocks * 512
        return usage

    async def isolation(self) -> IsolationReport:
        """Of its agent, whose child everything inside is: what holds the agent holds them."""
        self._require_alive("look at the isolation")
        report = await asyncio.to_thread(self._isolation)
        self._require_alive("look at the isolation")  # else its number may have been another process's already
        return report

    def _isolation(self) -> IsolationReport:
        facts = IsolationFacts()
        facts.of_process(int(self._ref.facts["pid"]))
        process = self._around.tier.facts(int(self._ref.facts["pid"]), facts)
        self._facts_of_the_ground(facts)
        driver = self._ref.driver
        return IsolationReport(tier=driver, driver=driver, process=process, unread=facts.unread, **facts.found)

    def _decide(self) -> None:
        why = self._why()
        if why.cause is EndCause.AGENT_DIED and loop_is_bound(self.slot.numbers.loop):
            self._background.start(self._ask_the_disk_again(), name=f"why {self._id} ended")
        else:
            self._over(why)

    async def _ask_the_disk_again(self) -> None:
        """While the kernel unmounts, an error is told by nobody: not by it any more, and not by the image yet."""
        self._trees.lift_cpu_quota(self._id)
        await self._disk_let_go()
        self._over(self._why())

    def _why(self) -> InstanceEnd:
        if self._requested:
            return InstanceEnd(EndCause.REQUESTED)
        if self._trees.agent_oom_kills(self._id):
            return InstanceEnd(EndCause.OUT_OF_MEMORY, "the kernel ended it: its memory limit was reached")
        if self._disk_failed():
            return InstanceEnd(EndCause.DISK_FAILED, "its disk could not be read or written: see the host's kernel log")
        return InstanceEnd(EndCause.AGENT_DIED, "its first process ended")

    def _disk_failed(self) -> bool:
        """Since it was booted: a disk that was captured tells its errors again."""
        since = int(self._ref.facts.get("booted_at", 0))
        return last_error_at(str(self._ref.facts["disk"]), self.slot.numbers.loop) >= max(1, since)

    async def _take_apart(self) -> None:
        await self._remove_box()
        mark("groups removed")
        await self._disk_let_go()
        mark("disk let go")
        self._link.close()
        remove_place(self.socket_path)
        await self._around.released(self)
        mark("slot given back")

    async def _remove_box(self) -> None:
        """The kernel lets a box go shortly after its last process; the last tries end what was moved into it."""
        waited = 0.0
        while not self._trees.remove(self._id) and waited < _BOX_GONE_WITHIN_S:
            if waited > 0.5:
                self._trees.lift_cpu_quota(self._id)
                for pid in self._trees.members(self._id):
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            await asyncio.sleep(0.002 if waited < 0.1 else 0.05)
            waited += 0.002 if waited < 0.1 else 0.05

    async def _disk_let_go(self) -> None:
        """The kernel unbinds the loop device after its last mount; only then is everything in the image."""
        waited = 0.0
        while loop_is_bound(self.slot.numbers.loop) and waited < _BOX_GONE_WITHIN_S:
            await asyncio.sleep(0.001 if waited < 0.05 else 0.02)
            waited += 0.001 if waited < 0.05 else 0.02

    def _hang_up(self) -> None:
        self._link.close()


def _require_room(image: Path, room_bytes: int) -> None:
    """What the image has now is what its copy will take where the host's file system has no reflinks."""
    needed = image.stat().st_blocks * 512
    if needed > room_bytes:
        raise CapacityRejected(_CAPTURE, "free disk on the host", requested=needed, available=room_bytes, unit="bytes")
