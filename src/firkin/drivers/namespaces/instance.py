"""One running sandbox of the namespaces driver, as the server holds it: a process handle, a socket path, a slot."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path

from firkin.channels import SocketChannel, StreamChannel, over_socket, over_unix
from firkin.drivers.namespaces.slots import Slot
from firkin.host.cgroups import Trees
from firkin.host.disks import copy_image, disk_errors, loop_is_bound
from firkin.host.netns_sockets import NamespaceSockets
from firkin.host.syncing import sync_files, sync_filesystem
from firkin.host.syscalls import kill_pidfd
from firkin.law.driver import InstanceEnd, InstanceRef
from firkin.law.errors import BackendFailure, PortFailure, SandboxUnavailable
from firkin.law.ids import SandboxId
from firkin.law.states import EndCause
from firkin.lifetimes import Children, finish

IMAGE = "disk.img"
_NOBODY = (errno.ECONNREFUSED, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
_DIAL_WITHIN_S = 5.0
_FREEZE_WITHIN_S = 5.0
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
        sockets: NamespaceSockets,
    ) -> None:
        self._id = sandbox_id
        self._ref = ref
        self._pidfd = pidfd
        self.slot = slot
        self._trees = trees
        self._released = released
        self._background = background
        self._sockets = sockets
        self._freezing = asyncio.Lock()
        self._spilled = False
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
        async with self._freezing:
            try:
                await self._set_frozen(True)
            except BaseException as error:
                with suppress(OSError):
                    self._trees.freeze(self._id, False)
                if isinstance(error, TimeoutError):
                    raise BackendFailure("freeze", "namespaces", "its processes could not be stopped") from error
                raise

    async def thaw(self) -> None:
        async with self._freezing:
            if self._spilled:
                self._spilled = False
                self._trees.forbid_swap(self._id)
            await self._set_frozen(False)

    async def _set_frozen(self, frozen: bool) -> None:
        self._trees.freeze(self._id, frozen)
        pause_s = 0.0
        async with asyncio.timeout(_FREEZE_WITHIN_S):
            while self._trees.is_frozen(self._id) is not frozen:  # the kernel offers nothing to wait on
                await asyncio.sleep(pause_s)
                pause_s = min(0.005, pause_s + 0.0002)

    async def reclaim(self) -> None:
        if self._end.done() or not self._trees.is_frozen(self._id):
            return
        self._spilled = True
        await asyncio.to_thread(self._trees.reclaim, self._id)
        if not self._trees.is_frozen(self._id):  # thawed meanwhile
            self._trees.forbid_swap(self._id)

    async def capture(self, into: Path) -> None:
        """Most of what is to be written out goes before the freeze; what is left, and the copy, within it."""
        if self._end.done():
            raise SandboxUnavailable("capture", self._id, self._end.result().cause.value)
        try:
            await self._capture(into)
        except OSError as error:
            raise BackendFailure("capture", "namespaces", error.strerror or str(error)) from error

    async def _capture(self, into: Path) -> None:
        began_frozen = self._trees.is_frozen(self._id)
        await asyncio.to_thread(self._sync)
        if not began_frozen:
            await self.freeze()
        try:
            await asyncio.to_thread(self._copy_disk, into)
        finally:
            if not began_frozen:
                await finish(self.thaw(), within_s=2 * _FREEZE_WITHIN_S)
        await asyncio.to_thread(sync_files, str(into))

    def _sync(self) -> None:
        root = os.open(f"/proc/{self._ref.facts['pid']}/root", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            sync_filesystem(root)
        finally:
            os.close(root)

    def _copy_disk(self, into: Path) -> None:
        self._sync()
        source = os.open(str(self._ref.facts["disk"]), os.O_RDONLY | os.O_CLOEXEC)
        try:
            target = os.open(into / IMAGE, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                copy_image(source, target, os.fstat(source).st_size)
            finally:
                os.close(target)
        finally:
            os.close(source)

    async def dial_port(self, port: int) -> SocketChannel:
        """Past the agent: a socket of the sandbox's own network namespace, connected to its loopback."""
        if self._end.done():
            raise SandboxUnavailable("connect to a port", self._id, self._end.result().cause.value)
        for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            made = await self._socket(family)
            try:
                await asyncio.get_running_loop().sock_connect(made, (address, port))
                made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return await over_socket(made)
            except OSError as error:
                made.close()
                if error.errno not in _NOBODY:
                    raise PortFailure("connect", port, f"port {port}: {error.strerror or error}") from error
            except BaseException:
                made.close()
                raise
        raise PortFailure("connect", port, f"nothing listens on port {port}", refused=True)

    async def _socket(self, family: int) -> socket.socket:
        if self.slot.network >= 0:
            return await self._sockets.make(self.slot.network, family)
        namespace = os.open(f"/proc/{self._ref.facts['pid']}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return await self._sockets.make(namespace, family)
        finally:
            os.close(namespace)

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
        if disk_errors(self.slot.numbers.loop):
            return InstanceEnd(EndCause.DISK_FAILED, "its disk could not be read or written: see the host's kernel log")
        return InstanceEnd(EndCause.AGENT_DIED, "its first process ended")

    async def _clean(self) -> None:
        """Remove the box, the socket and give the slot back, once."""
        if self._cleaning:
            await self._cleaned.wait()
            return
        self._cleaning = True
        await self._remove_box()
        await self._disk_let_go()
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

    async def _disk_let_go(self) -> None:
        """The kernel unbinds the loop device after its last mount; only then is everything in the image."""
        waited = 0.0
        while loop_is_bound(self.slot.numbers.loop) and waited < _BOX_GONE_WITHIN_S:
            await asyncio.sleep(0.001 if waited < 0.05 else 0.02)
            waited += 0.001 if waited < 0.05 else 0.02

    def let_go(self) -> None:
        """The server ends but the sandbox lives: forget it without touching it."""
        if not self._end.done():
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._end.cancel()
        self.slot.close()
