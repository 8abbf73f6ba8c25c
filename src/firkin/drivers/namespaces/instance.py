"""One running sandbox of the namespaces driver, as the server holds it: a process handle, a socket path, a slot."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path

from firkin.channels import StreamChannel, over_unix
from firkin.drivers.namespaces.slots import Slot
from firkin.host.cgroups import Trees
from firkin.host.syscalls import kill_pidfd
from firkin.law.driver import InstanceEnd, InstanceRef
from firkin.law.errors import SandboxUnavailable
from firkin.law.ids import SandboxId
from firkin.law.states import EndCause
from firkin.lifetimes import Children

_DIAL_WITHIN_S = 5.0
_END_WITHIN_S = 20.0
_BOX_GONE_WITHIN_S = 10.0


class NamespacesInstance:
    """Implements the law's `Instance`."""

    def __init__(
        self,
        sandbox_id: SandboxId,
        ref: InstanceRef,
        *,
        pidfd: int,
        slot: Slot,
        trees: Trees,
        released: Callable[[NamespacesInstance], Awaitable[None]],
        background: Children,
    ) -> None:
        self._id = sandbox_id
        self._ref = ref
        self._pidfd = pidfd
        self.slot = slot
        self._trees = trees
        self._released = released
        self._background = background
        self._end: asyncio.Future[InstanceEnd] = asyncio.get_running_loop().create_future()
        self._requested = False
        self._cleaned = asyncio.Event()
        self._cleaning = False
        asyncio.get_running_loop().add_reader(pidfd, self._process_ended)

    @property
    def sandbox_id(self) -> SandboxId:
        return self._id

    @property
    def ref(self) -> InstanceRef:
        return self._ref

    @property
    def socket_path(self) -> str:
        return str(self._ref.facts["socket"])

    async def dial(self) -> StreamChannel:
        if self._end.done():
            raise SandboxUnavailable("reach the agent", self._id, self._end.result().cause.value)
        try:
            return await over_unix(self.socket_path, within_s=_DIAL_WITHIN_S)
        except (OSError, TimeoutError) as error:
            raise SandboxUnavailable("reach the agent", self._id, str(error) or "it does not answer") from error

    async def ended(self) -> InstanceEnd:
        return await asyncio.shield(self._end)

    async def destroy(self) -> None:
        self._requested = True
        if not self._end.done():
            with suppress(OSError):
                if self._trees.is_frozen(self._id):
                    self._trees.freeze(self._id, False)  # a frozen process does not take even SIGKILL (version 1)
            kill_pidfd(self._pidfd, signal.SIGKILL)
            try:
                async with asyncio.timeout(_END_WITHIN_S):
                    await asyncio.shield(self._end)
            except TimeoutError:  # the kernel is still at it: what is left is removed when it is done
                self._background.start(self._clean_later(), name=f"clean {self._id}")
                raise
        await self._clean()

    async def _clean_later(self) -> None:
        await asyncio.shield(self._end)
        await self._clean()

    async def freeze(self) -> None:
        await self._set_frozen(True)

    async def thaw(self) -> None:
        await self._set_frozen(False)

    async def _set_frozen(self, frozen: bool) -> None:
        self._trees.freeze(self._id, frozen)
        async with asyncio.timeout(5):
            while self._trees.is_frozen(self._id) is not frozen:  # noqa: ASYNC110 — the kernel offers nothing to wait on
                await asyncio.sleep(0.001)

    async def usage(self) -> Mapping[str, int]:
        usage = self._trees.usage(self._id)
        image = Path(str(self._ref.facts["disk"]))
        with suppress(OSError):
            usage["disk_used_bytes"] = image.stat().st_blocks * 512
        return usage

    def _process_ended(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        if not self._end.done():
            self._end.set_result(self._why())

    def _why(self) -> InstanceEnd:
        if self._requested:
            return InstanceEnd(EndCause.REQUESTED)
        if self._trees.usage(self._id).get("oom_kills"):
            return InstanceEnd(EndCause.OUT_OF_MEMORY, "the kernel ended it: its memory limit was reached")
        return InstanceEnd(EndCause.AGENT_DIED, "its first process ended")

    async def _clean(self) -> None:
        """Remove the box, the socket and give the slot back, once."""
        if self._cleaning:
            await self._cleaned.wait()
            return
        self._cleaning = True
        await self._remove_box()
        with suppress(OSError):
            os.unlink(self.socket_path)
        await self._released(self)
        self._cleaned.set()

    async def _remove_box(self) -> None:
        """The kernel lets a box go shortly after its last process; the last tries end what was moved into it."""
        waited = 0.0
        while not self._trees.remove(self._id) and waited < _BOX_GONE_WITHIN_S:
            if waited > 0.5:
                for pid in self._trees.members(self._id):
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            await asyncio.sleep(0.002 if waited < 0.1 else 0.05)
            waited += 0.002 if waited < 0.1 else 0.05

    def let_go(self) -> None:
        """The server ends but the sandbox lives: forget it without touching it."""
        if not self._end.done():
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._end.cancel()
        self.slot.close()
