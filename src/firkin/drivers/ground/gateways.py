"""Egress gateways of this driver: one for each owner that has inspected sandboxes, in a slot's network of its own.

A gateway's slot is a sandbox's slot without a sandbox: an address that may go out
to public addresses, a range of ids that owns nothing, and a number that no other
server of the machine has. Its listening sockets are in the host's network, on the host's end
of that slot, where the firewall lets in those alone that are led there.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from firkin.drivers.ground.slots import Slot, SlotPool
from firkin.gateway.confinement import CALLS
from firkin.gateway.denials import Denial, destination_of, rule_of
from firkin.gateway.keeper import Gateway
from firkin.gateway.orders import SandboxOrder, Setup
from firkin.host.firewall import Doors, Firewall, FirewallUnavailable, led_group
from firkin.host.networks import SandboxNetworks
from firkin.host.seccomp import SeccompUnavailable, compiled
from firkin.law.errors import BackendFailure, FirkinError, SandboxUnavailable
from firkin.law.ids import SandboxId
from firkin.law.network import NetworkPolicy
from firkin.law.network_use import RefusedFlow
from firkin.law.reach import Reach
from firkin.lifetimes import Children, finish

if TYPE_CHECKING:
    from firkin.gateway.authorities import Authority

IDLE_S = 30.0
_BACKLOG = 1024
_OWN_ID = 1000  # within the slot's range: not that of its root, which a process inside could have
_MOST_RESOLVERS = 3
_RESOLVERS = Path("/etc/resolv.conf")
_log = logging.getLogger("firkin.gateway")
Told = Callable[[SandboxId, str], None]


@dataclass(slots=True)
class _Manned:
    """A gateway and where it is. `reach` is what its own network lets it reach, None when that is not known."""

    gateway: Gateway
    slot: Slot
    listening: list[socket.socket]
    doors: Doors
    reach: Reach | None


@dataclass(slots=True)
class _Trusted:
    """The authority of one sandbox, and for which domains it was made."""

    domains: tuple[str, ...]
    authority: Authority = field(repr=False)


class Gateways:
    """Started when first wanted, ended when nobody has needed them for a while."""

    def __init__(
        self,
        slots: Callable[[], Awaitable[SlotPool]],
        networks: SandboxNetworks,
        firewall: Firewall,
        *,
        trust: str = "",
    ) -> None:
        """`trust` is a file of authorities (PEM) that servers' certificates may be of, beside the system's."""
        self._pool = slots
        self._networks = networks
        self._firewall = firewall
        self._trust = trust
        self._manned: dict[str, _Manned] = {}
        self._owners: dict[str, str] = {}
        self._sandboxes: dict[str, SandboxId] = {}
        self._trusted: dict[str, _Trusted] = {}
        self._reaches: dict[str, Reach] = {}
        self._lock = asyncio.Lock()
        self._tasks = Children()
        self._told: Told | None = None

    def report(self, told: Told) -> None:
        self._told = told

    @property
    def pids(self) -> dict[str, int | None]:
        """The gateways' processes, by owner."""
        return {owner: manned.gateway.pid for owner, manned in self._manned.items()}

    async def lead(
        self, sandbox_id: SandboxId, slot: Slot, *, owner: str, policy: NetworkPolicy, secrets: Mapping[str, str]
    ) -> str:
        """See `EgressKeeper.lead`. The gateway knows before the first packet is led to it."""
        address = slot.numbers.guest_address
        trusted = self._authority(address, policy)
        order = SandboxOrder(
            sandbox_id=str(sandbox_id),
            address=address,
            policy=policy,
            secrets=dict(secrets),
            authority=trusted.authority.certificate if trusted else "",
            authority_key=trusted.authority.key if trusted else "",
        )
        async with self._lock:
            manned = self._manned.get(owner) or await self._man(owner)
            self._owners[address] = owner
            self._sandboxes[address] = sandbox_id
            self._reaches[address] = Reach.of(NetworkPolicy(internet=True, allow_out=policy.allowed_networks))
            await self._fit_reach(owner, manned)
        await manned.gateway.lead(order)
        await self._networks.lead(str(sandbox_id), led_group(manned.slot.numbers.slot))
        return order.authority

    async def forget(self, slot: Slot) -> None:
        """The sandbox in `slot` is gone: what is open from there is cut. Never fails."""
        address = slot.numbers.guest_address
        self._trusted.pop(address, None)
        self._sandboxes.pop(address, None)
        self._reaches.pop(address, None)
        owner = self._owners.pop(address, None)
        manned = self._manned.get(owner) if owner is not None else None
        if manned is None or owner is None:
            return
        with suppress(BackendFailure):
            await manned.gateway.forget(address)
        if self._reach_of(owner) != manned.reach:  # the lock is held while gateways start: few wait for it
            with suppress(BackendFailure):  # it is logged, and shuts the gateway off
                async with self._lock:
                    await self._fit_reach(owner, manned)
        if owner not in self._owners.values():
            self._tasks.start(self._end_if_idle(owner, manned), name=f"idle gateway {owner}")

    async def reopen(self) -> None:
        """The firewall was made anew: open the doors again. Raises `FirewallUnavailable`, `OSError`."""
        async with self._lock:
            for manned in self._manned.values():
                await self._networks.open(manned.slot.wire, manned.reach or Reach.internet())
                await self._open_doors(manned.slot, manned.doors)

    async def _open_doors(self, slot: Slot, doors: Doors) -> None:
        group = led_group(slot.numbers.slot)
        await asyncio.to_thread(self._firewall.open_doors, group, slot.numbers.host_address, doors)

    async def aclose(self) -> None:
        with suppress(FirkinError, OSError):
            await self._tasks.aclose()
        async with self._lock:
            for owner in list(self._manned):
                await self._unman(owner)

    def _authority(self, address: str, policy: NetworkPolicy) -> _Trusted | None:
        domains = tuple(sorted(rule.domain for rule in policy.rules))
        if not domains:
            return None
        from firkin.gateway.authorities import new_authority  # X.509 takes 7 MB, and few servers need it
        from firkin.host import certificates

        known = self._trusted.get(address)
        if known is None or known.domains != domains or not known.authority.serves(certificates.now()):
            known = self._trusted[address] = _Trusted(domains, new_authority(domains))
        return known

    async def _man(self, owner: str) -> _Manned:
        pool = await self._pool()
        slot = await pool.take(online=True)
        listening: list[socket.socket] = []
        gateway: Gateway | None = None
        try:
            await self._networks.open(slot.wire, Reach.internet())
            setup, doors = await asyncio.to_thread(self._prepared, slot, listening)
            gateway = Gateway(owner, setup, denied=self._denied, told=lambda text: self._tell(owner, text))
            await gateway.start()
            await self._open_doors(slot, doors)
        except BaseException as error:
            if gateway is not None:
                await finish(gateway.aclose(), within_s=10.0)
            _close(listening)
            await finish(pool.dismantle(slot), within_s=10.0)
            if isinstance(error, (OSError, FirewallUnavailable, SeccompUnavailable)):
                raise BackendFailure("start an egress gateway", "namespaces", str(error)) from error
            raise
        manned = self._manned[owner] = _Manned(gateway, slot, listening, doors, Reach.internet())
        _log.info("egress gateway started owner=%s pid=%s", owner, gateway.pid)
        return manned

    async def _fit_reach(self, owner: str, manned: _Manned) -> None:
        """Its own network lets it reach what its sandboxes may reach by address, beside what is public. No more."""
        reach = self._reach_of(owner)
        if reach == manned.reach or self._manned.get(owner) is not manned:
            return
        manned.reach = None
        try:
            await self._networks.open(manned.slot.wire, reach)
        except OSError as error:
            _log.error("egress gateway cut off owner=%s error=%s", owner, error)
            raise BackendFailure("open an egress gateway's way", "namespaces", str(error)) from error
        manned.reach = reach

    def _reach_of(self, owner: str) -> Reach:
        led = [self._reaches[address] for address, led_by in self._owners.items() if led_by == owner]
        return Reach.joined([Reach.internet(), *led])

    def _prepared(self, slot: Slot, listening: list[socket.socket]) -> tuple[Setup, Doors]:
        """Sockets in the host's network, and what the process is told of them."""
        address = slot.numbers.host_address
        for kind in (socket.SOCK_STREAM, socket.SOCK_STREAM, socket.SOCK_DGRAM):
            made = socket.socket(socket.AF_INET, kind | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
            listening.append(made)
            made.bind((address, 0))
            if kind is socket.SOCK_STREAM:
                made.listen(_BACKLOG)
        tcp, dns_tcp, dns_udp = listening
        resolvers = _resolver_sockets()
        listening += resolvers
        setup = Setup(
            user=slot.numbers.first_uid + _OWN_ID,
            network=slot.network,
            tcp=tcp.fileno(),
            dns_tcp=dns_tcp.fileno(),
            dns_udp=dns_udp.fileno(),
            resolvers=tuple(made.fileno() for made in resolvers),
            trust=Path(self._trust).read_text() if self._trust else "",
            filter=compiled(CALLS).hex(),
        )
        ports = [made.getsockname()[1] for made in (tcp, dns_tcp, dns_udp)]
        return setup, Doors(tcp=ports[0], dns_tcp=ports[1], dns_udp=ports[2])

    async def _unman(self, owner: str) -> None:
        manned = self._manned.pop(owner)
        await manned.gateway.aclose()
        await asyncio.to_thread(self._firewall.close_doors, led_group(manned.slot.numbers.slot))
        _close(manned.listening)
        await (await self._pool()).dismantle(manned.slot)

    async def _end_if_idle(self, owner: str, manned: _Manned) -> None:
        await asyncio.sleep(IDLE_S)
        async with self._lock:
            if self._manned.get(owner) is manned and owner not in self._owners.values():
                await finish(self._unman(owner), within_s=15.0)

    def _denied(self, order: SandboxOrder, denial: Denial, count: int) -> None:
        flow = RefusedFlow(
            destination=destination_of(denial, order),
            protocol=denial.protocol,
            port=denial.port,
            packets=count,
            at=datetime.now(UTC),
            rule=rule_of(denial, order),
        )
        self._networks.judged(order.sandbox_id, flow)

    def _tell(self, owner: str, text: str) -> None:
        for address, sandbox_id in self._sandboxes.items():
            if self._told is not None and self._owners.get(address) == owner:
                self._told(sandbox_id, text)


class Keeper:
    """The law's `EgressKeeper` over `Gateways`, for sandboxes that `slot_of` knows."""

    def __init__(self, gateways: Gateways, slot_of: Callable[[SandboxId], Slot | None]) -> None:
        self._gateways = gateways
        self._slot_of = slot_of

    async def lead(
        self, sandbox_id: SandboxId, *, owner: str, policy: NetworkPolicy, secrets: Mapping[str, str]
    ) -> str:
        """See `EgressKeeper.lead`."""
        slot = self._slot_of(sandbox_id)
        if slot is None:
            raise SandboxUnavailable("lead to an egress gateway", sandbox_id, "it has ended")
        return await self._gateways.lead(sandbox_id, slot, owner=owner, policy=policy, secrets=secrets)

    def report(self, told: Told) -> None:
        """See `EgressKeeper.report`."""
        self._gateways.report(told)


def _resolver_sockets() -> list[socket.socket]:
    """One for each resolver of the host, from the host's network: a gateway's own may not reach it."""
    made: list[socket.socket] = []
    with suppress(OSError):
        for line in _RESOLVERS.read_text().splitlines():
            words = line.split()
            if len(words) < 2 or words[0] != "nameserver" or len(made) == _MOST_RESOLVERS:
                continue
            with suppress(OSError):
                family = socket.AF_INET6 if ":" in words[1] else socket.AF_INET
                connected = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
                made.append(connected)
                connected.connect((words[1], 53))
    return made


def _close(listening: list[socket.socket]) -> None:
    for made in listening:
        made.close()
