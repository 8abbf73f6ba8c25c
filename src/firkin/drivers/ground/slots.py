"""Slots: the parts of a sandbox that take longest, made before they are needed, and used again.

A slot is a range of ids, the namespaces that map them, a wired network, and a
loop device. It is handed to one sandbox at a time. It comes back only when no
process of that sandbox is left and its loop device is free, so the next tenant
finds nothing of the last one: files are on another disk, sockets died with
their processes, and the wire is cleaned of all that was allowed and refused.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
from collections import deque
from contextlib import suppress

from firkin.drivers.ground.helper_process import HelperDied, HelperProcess
from firkin.drivers.ground.leases import SlotLeases
from firkin.drivers.ground.numbers import SlotNumbers
from firkin.host.disks import loop_is_bound, remove_loop_device
from firkin.host.firewall import ONLINE
from firkin.host.wires import OFFLINE, Wire, Wires
from firkin.law.errors import BackendFailure, CapacityRejected
from firkin.lifetimes import Children

_LOOP_FREE_WITHIN_S = 10.0
_QUIET_S = 0.2
_LAST_STEPS_S = 0.01  # of a delete: its caller is being answered yet
_PARTS = 3
_NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)
_MAKER = "firkin.drivers.ground.slot_maker"


class Slot:
    """One slot in hand. After a restart it has no descriptors but, at most, its network: not to be used again."""

    __slots__ = ("idmap", "loop", "network", "numbers", "user", "wire")

    def __init__(self, slot: int, fds: list[int] | None = None, loop: tuple[int, int] = (0, 0)) -> None:
        self.numbers = SlotNumbers(slot)
        self.user, self.network, self.idmap = fds or (-1, -1, -1)
        self.loop = loop
        group = None if fds is None else OFFLINE
        self.wire = Wire(self.numbers.interface, self.numbers.guest_address, group)

    @property
    def whole(self) -> bool:
        return self.user >= 0

    def close(self) -> None:
        for fd in (self.user, self.network, self.idmap):
            if fd >= 0:
                os.close(fd)
        self.user = self.network = self.idmap = -1


class SlotPool:
    """Keeps about `depth` slots ready. `take` never fails because the pool is empty: it waits for a new one."""

    def __init__(self, leases: SlotLeases, wires: Wires, *, depth: int) -> None:
        self._leases = leases
        self._wires = wires
        self._depth = depth
        self._free: deque[int] = deque()
        self._ready: deque[Slot] = deque()
        self._used: set[int] = set()
        self._returning: list[Slot] = []
        self._wanted = asyncio.Event()
        self._waiting: deque[asyncio.Future[Slot]] = deque()
        self._maker = HelperProcess(_MAKER)
        self._tasks = Children()
        self._trouble = ""
        self._taken_at = 0.0

    def begin(self) -> None:
        """Slots are about to be wanted: have what makes them load its code."""
        self._maker.begin()

    async def start(self, used: set[int]) -> None:
        """`used`: slots of sandboxes that live on from an earlier server."""
        self._used |= used
        self._free.extend(slot for slot in self._leases.recover() if slot not in used)
        await self._maker.start()
        self._tasks.start(self._keep_ready(), name="slots")

    async def aclose(self) -> None:
        with suppress(HelperDied):
            await self._tasks.aclose()
        await self._maker.aclose()
        returned = [slot for slot in self._returning if not loop_is_bound(slot.numbers.loop)]
        unused = [slot.numbers for slot in (*self._ready, *returned)]
        for slot in (*self._ready, *self._returning):
            slot.close()
        self._used.difference_update(numbers.slot for numbers in unused)
        self._ready.clear()
        self._returning.clear()
        await asyncio.gather(*(asyncio.to_thread(remove_loop_device, numbers.loop) for numbers in unused))
        self._leases.release(keep=self._used)

    async def take(self, *, online: bool) -> Slot:
        """A slot; if possible one that is `online` already, or is not. What it may reach is to be said yet."""
        self._taken_at = asyncio.get_running_loop().time()
        slot = self._best(online) or await self._next()
        self._used.add(slot.numbers.slot)
        self._wanted.set()
        return slot

    def adopt(self, number: int) -> Slot:
        """The slot of a sandbox that an earlier server started, whose interface is as that server left it."""
        self._used.add(number)
        return Slot(number)

    async def dismantle(self, slot: Slot) -> None:
        """Take a slot apart whose network was no sandbox's."""
        await self._cleaned(slot)
        slot.close()
        await asyncio.to_thread(remove_loop_device, slot.numbers.loop)
        self._used.discard(slot.numbers.slot)
        self._free.append(slot.numbers.slot)

    def give_back(self, slot: Slot) -> None:
        """The sandbox is gone. Parts of it that the kernel has not let go yet are waited for, in the background."""
        self._returning.append(slot)
        self._tasks.start(self._recycle(slot), name=f"recycle {slot.numbers.interface}")

    async def _recycle(self, slot: Slot) -> None:
        if self._ready:  # else somebody may want it at once
            await asyncio.sleep(_LAST_STEPS_S)
        if not await _loop_free(slot.numbers.loop):
            return  # leaked by the kernel's measure: the number stays out of use while this server lives
        clean = await self._cleaned(slot)
        self._returning.remove(slot)
        self._used.discard(slot.numbers.slot)
        if clean and slot.whole and len(self._ready) < 2 * self._depth + 16:
            self._offer(slot)
            return
        slot.close()
        await asyncio.to_thread(remove_loop_device, slot.numbers.loop)
        self._free.append(slot.numbers.slot)
        self._wanted.set()

    def _best(self, online: bool) -> Slot | None:
        """The oldest ready slot, if possible one whose firewall answer is already right."""
        for index, slot in enumerate(self._ready):
            if (slot.wire.group == ONLINE) is online:
                del self._ready[index]
                return slot
            if index > 8:
                break
        return self._ready.popleft() if self._ready else None

    async def _next(self) -> Slot:
        waiting: asyncio.Future[Slot] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        self._wanted.set()
        try:
            async with asyncio.timeout(30):
                return await waiting
        except TimeoutError:
            raise BackendFailure("make a sandbox slot", "namespaces", self._trouble or "no slot in 30 s") from None
        except asyncio.CancelledError:
            if waiting.done() and not waiting.cancelled():
                self._offer(waiting.result())
            raise

    def _offer(self, slot: Slot) -> None:
        while self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.done():
                waiting.set_result(slot)
                return
        self._ready.append(slot)

    async def _keep_ready(self) -> None:
        """One slot at a time; those who wait go first.

        The pool is filled up in quiet moments only: while sandboxes come and go,
        their slots come back by themselves, and making others meanwhile would
        cost the creates more than it gives them.
        """
        while True:
            if len(self._ready) >= self._depth and not self._waiting:
                self._wanted.clear()
                await self._wanted.wait()
                continue
            if not self._waiting and self._busy() and len(self._ready) > self._depth // 4:
                await asyncio.sleep(_QUIET_S / 4)
                continue
            try:
                self._offer(await self._make())
                self._trouble = ""
            except CapacityRejected as error:  # a new try helps only when a sandbox has gone
                self._refuse_all(error)
                self._wanted.clear()
                await self._wanted.wait()
            except (BackendFailure, HelperDied, OSError) as error:
                self._trouble = str(error)
                if isinstance(error, OSError) and error.errno in _NO_DESCRIPTORS:
                    self._refuse_all(error)  # it may last; who asks again finds out
                await asyncio.sleep(0.2)
                await self._restart_maker()
            if not self._waiting:
                await asyncio.sleep(0.002)

    def _refuse_all(self, error: CapacityRejected | OSError) -> None:
        while self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.done():
                waiting.set_exception(error)

    def _busy(self) -> bool:
        return asyncio.get_running_loop().time() < self._taken_at + _QUIET_S

    async def _make(self) -> Slot:
        if not self._free:
            self._free.extend(slot for slot in self._leases.take() if slot not in self._used)
        number = self._free.popleft()
        try:
            await self._maker.send(json.dumps({"slot": number}).encode(), [])
            async with asyncio.timeout(20):
                message, fds = await self._maker.receive()
        except BaseException:
            self._free.append(number)
            raise
        answer = json.loads(message)
        if "error" in answer:
            self._free.append(number)
            raise BackendFailure("make a sandbox slot", "namespaces", answer["error"])
        if len(fds) != _PARTS:
            self._free.append(number)
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return Slot(number, fds, tuple(answer["loop"]))

    async def _restart_maker(self) -> None:
        await self._maker.aclose()
        with suppress(BackendFailure, OSError):  # the next slot is made with the next try
            await self._maker.start()

    async def _cleaned(self, slot: Slot) -> bool:
        """False when the kernel cannot: then the slot is not used again, and its number only with a new interface."""
        try:
            await asyncio.to_thread(self._wires.clean, slot.wire)
        except OSError:
            return False
        return True


async def _loop_free(number: int) -> bool:
    """The kernel unbinds a loop device shortly after its last mount went."""
    waited = 0.0
    while loop_is_bound(number):
        if waited > _LOOP_FREE_WITHIN_S:
            return False
        await asyncio.sleep(0.02)
        waited += 0.02
    return True
