"""The sandboxes that requests name: whose they are, whether they run, and who is connected to them.

A sandbox that ended must first read as dead and then reset its clients'
connections: the SDKs probe its health as soon as a connection breaks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext

from firkin.e2b.auth import ApiKey
from firkin.e2b.error_map import changing_sandbox, dead_sandbox, left_asleep, missing_sandbox
from firkin.e2b.exchange import Exchange, Refused
from firkin.e2b.quotas import Quotas
from firkin.e2b.settings import ServerSettings
from firkin.e2b.signatures import SignedLink, TokenMint
from firkin.e2b.waking import Waker, wakes_on_traffic
from firkin.law.backend import SandboxBackend
from firkin.law.capabilities import CapabilityName, Permanent
from firkin.law.errors import InvalidSpec, NotFound, UnsupportedCapability
from firkin.law.events import EventFilter, LifecycleChanged
from firkin.law.ids import SandboxId
from firkin.law.processes import GuestUser
from firkin.law.sandboxes import PauseMode, SandboxFilter, SandboxInfo
from firkin.law.states import ALIVE, SandboxState

LABEL_SECURE = "e2b.secure"
LABEL_PUBLIC = "e2b.public"
LABEL_INTERNET = "e2b.internet"
LABEL_MASK_HOST = "e2b.mask-request-host"
LABEL_KEY = "e2b.idempotency"
LABEL_REQUEST = "e2b.request"
LABEL_TEMPLATE = "e2b.template"
LABEL_ALIAS = "e2b.alias"
LABEL_SPACE = "e2b.namespace"  # of the template's owner; the operator's has none

VISIBLE = frozenset({SandboxState.RUNNING, SandboxState.PAUSED})
_POLL_S = 0.005
_MAX_CACHED_USERS = 4096


class SandboxDirectory:
    """Looks sandboxes up for both planes, and holds the connections that must end with them."""

    def __init__(self, backend: SandboxBackend, settings: ServerSettings, quotas: Quotas) -> None:
        self.backend = backend
        self.quotas = quotas
        self.mint = TokenMint(settings.secret)
        self._settings = settings
        self._waker = Waker(backend, settings, quotas)
        self._held: dict[str, dict[Exchange, int | None]] = {}
        self._users: dict[tuple[str, str | None], tuple[float, GuestUser]] = {}
        self._when_stopped: list[Callable[[str], None]] = []
        self._when_over: list[Callable[[str], None]] = []

    async def owned(self, tenant: ApiKey, text: str) -> SandboxInfo:
        """A tenant's own sandbox, running or paused; everything else is missing alike."""
        try:
            # Old clients append "-<client id>" to the sandbox id.
            info = await self.backend.sandboxes.inspect(SandboxId(text.partition("-")[0]))
        except (InvalidSpec, NotFound):
            raise missing_sandbox(text[:64]) from None
        if info.owner != tenant.name:
            raise missing_sandbox(text[:64])
        if info.state is SandboxState.STOPPING:
            raise Refused(409, f'Sandbox "{info.id}" is being stopped', should_retry=False)
        if info.state not in VISIBLE:
            raise missing_sandbox(text[:64])
        return info

    async def exists(self, sandbox_id: str) -> bool:
        """Whether it runs, is paused or on its way to either."""
        try:
            return (await self.backend.sandboxes.inspect(SandboxId(sandbox_id))).state in ALIVE
        except (InvalidSpec, NotFound):
            return False

    async def live(
        self,
        sandbox_id: SandboxId,
        may_wake: Callable[[SandboxInfo], bool],
        waiting: Callable[[], AbstractAsyncContextManager[None]] = nullcontext,
    ) -> SandboxInfo:
        """A sandbox that the data plane can serve now; `Refused` (502) otherwise. `waiting` is held while it wakes.

        One that is paused and wakes on traffic is resumed first, and the caller waits for it; `Refused` (403) when
        the request `may_wake` none: a stranger must not make its owner pay.
        """
        try:
            info = await self.backend.sandboxes.inspect(sandbox_id)
        except NotFound:
            raise dead_sandbox(sandbox_id) from None
        if info.state is SandboxState.PAUSED and wakes_on_traffic(info):
            if not may_wake(info):
                raise left_asleep(sandbox_id)
            async with waiting():
                info = await self._waker.wake(info)
        if info.state is SandboxState.RUNNING:
            return info
        if info.state is SandboxState.STOPPING:
            raise changing_sandbox(sandbox_id, should_retry=False)
        raise dead_sandbox(sandbox_id)

    async def signer(self, link: SignedLink, may_wake: Callable[[SandboxInfo], bool]) -> SandboxInfo | None:
        """The sandbox whose token made that link, which names no sandbox; as `live` gives it."""
        for info in await self.backend.sandboxes.list(SandboxFilter(states=VISIBLE)):
            if link.matches(self.mint.data_plane(info.id)):
                return await self.live(info.id, may_wake)
        return None

    async def user(self, info: SandboxInfo, name: str | None) -> GuestUser:
        """An account inside. Raises `NotFound` (`USER`). Remembered for a few seconds."""
        now = asyncio.get_running_loop().time()
        known = self._users.get((info.id, name))
        if known is not None and known[0] > now:
            return known[1]
        processes = self.backend.processes
        if processes is None:
            raise UnsupportedCapability("look up a user", CapabilityName.PROCESS_RUN, Permanent("no processes here"))
        user = await processes.lookup_user(info.id, name)
        if len(self._users) >= _MAX_CACHED_USERS:
            self._users.clear()
        self._users[info.id, name] = (now + self._settings.user_cache_s, user)
        return user

    @contextmanager
    def holding(self, sandbox_id: SandboxId, exchange: Exchange, *, port: int | None = None) -> Iterator[None]:
        """While the block runs, an answer is broken off if the sandbox ends, or if its policy shuts `port`."""
        held = self._held.setdefault(sandbox_id, {})
        held[exchange] = port
        try:
            yield
        finally:
            held.pop(exchange, None)
            if not held and self._held.get(sandbox_id) is held:
                del self._held[sandbox_id]

    def when_stopped(self, call: Callable[[str], None]) -> None:
        """`call` gets the id of every sandbox that stops running: it is paused, or has ended."""
        self._when_stopped.append(call)

    def when_over(self, call: Callable[[str], None]) -> None:
        """`call` gets the id of every sandbox whose memory is gone: it has ended, or was paused without it."""
        self._when_over.append(call)

    async def stopped(self, sandbox_id: SandboxId, *, paused: bool) -> None:
        """The sandbox no longer runs, having been `paused` or ended: reset everybody who is connected to it."""
        for exchange in self._held.pop(sandbox_id, ()):
            exchange.break_off()
        for key in [key for key in self._users if key[0] == sandbox_id]:
            del self._users[key]
        over = [] if paused and await self._lives_on(sandbox_id) else self._when_over
        for call in (*self._when_stopped, *over):
            call(sandbox_id)

    def shut(self, sandbox_id: SandboxId, ports: Collection[int]) -> None:
        """Only these ports are to be reached from now on: reset whoever is connected to another."""
        for exchange, port in [*self._held.get(sandbox_id, {}).items()]:
            if port is not None and port not in ports:
                exchange.break_off()

    async def _lives_on(self, sandbox_id: SandboxId) -> bool:
        """Whether its memory is still there. One that runs again by now counts as such, even if it had to boot."""
        try:
            info = await self.backend.sandboxes.inspect(sandbox_id)
        except NotFound:
            return False
        return info.state in VISIBLE and info.pause_mode is not PauseMode.FILESYSTEM

    async def serves_soon(self, sandbox_id: SandboxId) -> bool:
        """Whether a request that found it gone would find it if it came now: it runs again, or traffic wakes it."""
        try:
            info = await self.backend.sandboxes.inspect(sandbox_id)
        except NotFound:
            return False
        return info.state is SandboxState.RUNNING or (info.state is SandboxState.PAUSED and wakes_on_traffic(info))

    async def reads_as_dead(self, sandbox_id: SandboxId, *, within_s: float | None = None) -> bool:
        """Wait, for a bounded time, until the sandbox no longer reads as running."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (self._settings.drain_s if within_s is None else within_s)
        while loop.time() < deadline:
            try:
                info = await self.backend.sandboxes.inspect(sandbox_id)
            except NotFound:
                return True
            if info.state is not SandboxState.RUNNING and info.state is not SandboxState.STOPPING:
                return True
            await asyncio.sleep(_POLL_S)
        return False

    async def watch(self) -> None:
        """Follow the backend's events for as long as the server runs."""
        events = self.backend.events
        if events is None:
            return
        stream = await events.subscribe(EventFilter())
        try:
            async for event in stream:
                match event.kind:
                    case LifecycleChanged(sandbox_id, state) if state not in _STILL_SERVED:
                        await self.stopped(sandbox_id, paused=state is SandboxState.PAUSED)
        finally:
            await stream.aclose()


_STILL_SERVED = frozenset({SandboxState.CREATING, SandboxState.RUNNING, SandboxState.STOPPING})


def is_secure(info: SandboxInfo) -> bool:
    """Whether its data plane asks for the token."""
    return info.labels.get(LABEL_SECURE) != "0"


def is_public(info: SandboxInfo) -> bool:
    """Whether its other ports are open to everybody."""
    return info.labels.get(LABEL_PUBLIC) != "0"
