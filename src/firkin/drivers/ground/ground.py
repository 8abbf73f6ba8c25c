"""What the drivers of one server share on this machine: its label, control groups, slots, networks, gateways.

A sandbox's address, and with it its network policy, is a slot's. Which driver
put what behind it is not known here, so a policy means the same on all of them.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
from contextlib import suppress
from pathlib import Path

from firkin.drivers.ground.firewall_guard import FirewallGuard
from firkin.drivers.ground.gateways import Gateways, Keeper
from firkin.drivers.ground.label_claim import LabelClaim
from firkin.drivers.ground.leases import SlotLeases
from firkin.drivers.ground.slots import Slot, SlotPool
from firkin.host import cgroups
from firkin.host.firewall import Firewall, FirewallUnavailable, allow_forwarding, uplinks
from firkin.host.netns_sockets import NamespaceSockets
from firkin.host.networks import SandboxNetworks
from firkin.host.wires import Wires
from firkin.law.errors import BackendFailure, IoFailure
from firkin.law.ids import SandboxId

READY_SLOTS = 104
_RUN = Path("/run/firkin")


class Ground:
    """Opened by each driver that stands on it, and closed by each; the last one leaves nothing of it."""

    def __init__(
        self,
        folder: Path,
        *,
        ready_slots: int = READY_SLOTS,
        egress_trust: str = "",
        layout: cgroups.Layout | None = None,
    ) -> None:
        """`folder` holds the label. `ready_slots`, `egress_trust`: see `SlotPool`, `Gateways`.
        `layout` says where control groups are; by default that is found out."""
        self.label = _label(folder)
        self.layout = layout or cgroups.detect()
        self.sockets = NamespaceSockets()
        self._firewall = Firewall(self.label)
        self._claim = LabelClaim(_RUN, self.label)
        self._leases = SlotLeases(self.label, _in_use)
        self._wires = Wires()
        self.networks = SandboxNetworks(self._wires, stands=self._firewall.stands)
        self._pool = SlotPool(self._leases, self._wires, depth=ready_slots)
        self.gateways = Gateways(self.slots, self.networks, self._firewall, trust=egress_trust)
        self._guard = FirewallGuard(self._firewall, self._firewall_restored)
        self._slots: dict[SandboxId, Slot] = {}
        self._adopted: set[int] = set()
        self._started = False
        self._users = 0
        self._opening = asyncio.Lock()

    def trees(self, kind: str = "", layout: cgroups.Layout | None = None) -> cgroups.Trees:
        """The control groups of one driver's sandboxes: another `kind` has others, a `layout` of its own maybe."""
        return cgroups.Trees(layout or self.layout, f"{self.label}-{kind}" if kind else self.label)

    def lives(self, kind: str) -> bool:
        """Whether a process of a sandbox of that kind lives. Blocks."""
        name = f"{self.label}-{kind}" if kind != "namespaces" else self.label
        return name in _labels(self.layout, self.label) and _lives(cgroups.Trees(self.layout, name))

    def run_folder(self, kind: str = "") -> Path:
        """Where one driver's sockets are."""
        return _RUN / (f"{self.label}-{kind}" if kind else self.label)

    def keeper(self) -> Keeper:
        """The law's `EgressKeeper` for every sandbox that is `settle`d here."""
        return Keeper(self.gateways, self._slots.get)

    async def open(self) -> None:
        """Raises `BackendFailure` when this host's firewall or interfaces cannot be used, or another server lives here
        under its label."""
        async with self._opening:
            if self._users == 0:
                await asyncio.to_thread(self._open)
                self._pool.begin()
                self._guard.start()
            self._users += 1

    def _open(self) -> None:
        try:
            self._claim.take()
            self._firewall.install()
            self._wires.start()
        except (FirewallUnavailable, OSError) as error:
            self._firewall.close()
            self._claim.release()
            raise BackendFailure("start", "network", str(error)) from error
        for uplink in uplinks():
            allow_forwarding(uplink)

    async def _firewall_restored(self) -> None:
        await self.gateways.reopen()
        await self.networks.restored()

    async def slots(self) -> SlotPool:
        """Started at the first need: only then is it known which slots living sandboxes hold."""
        if not self._started:
            self._started = True
            await self._pool.start(set(self._adopted))
        return self._pool

    def adopt(self, number: int) -> Slot:
        """The slot of a sandbox that an earlier server booted, with its network as it was left."""
        self._adopted.add(number)
        return self._pool.adopt(number)

    def settle(self, sandbox_id: SandboxId, slot: Slot) -> None:
        """A living sandbox is behind that slot, until `vacate`."""
        self._slots[sandbox_id] = slot

    async def vacate(self, sandbox_id: SandboxId, slot: Slot) -> None:
        """No process of the sandbox is left: its network serves the next one. Also after a boot that failed."""
        self._slots.pop(sandbox_id, None)
        await self.networks.disconnect(str(sandbox_id))
        await self.gateways.forget(slot)
        self._pool.give_back(slot)

    async def aclose(self) -> None:
        """One driver fewer, whose own part of the host is left already. Slots of living sandboxes stay."""
        self._users -= 1
        if self._users > 0:
            return
        await self._guard.aclose()
        await self.gateways.aclose()
        await self._pool.aclose()
        await asyncio.to_thread(self.sockets.close)
        self._leases.release(keep={slot.numbers.slot for slot in self._slots.values()})
        self._slots.clear()
        await asyncio.to_thread(self._leave)

    def _leave(self) -> None:
        if not _anyone_left():
            self._firewall.remove_if_last()
        self._wires.close()
        self._firewall.close()
        self._claim.release()


def leave_host(trees: cgroups.Trees, run_folder: Path) -> bool:
    """With no sandbox of a driver left, nothing of it stays on the host outside the state directory; whether so."""
    empty = not trees.boxes()
    trees.close()
    if empty:
        trees.remove_if_empty()
        shutil.rmtree(run_folder, ignore_errors=True)
    return empty


def _label(folder: Path) -> str:
    """This server's name on the host, the same over restarts."""
    path = folder / "label"
    try:
        with suppress(FileNotFoundError):
            if known := path.read_text().strip():  # a disk that was full may have left it empty
                return known
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return _written(path, secrets.token_hex(4))
    except OSError as error:
        raise IoFailure("keep the name of this server in", str(path), error.strerror or str(error)) from error


def _written(path: Path, label: str) -> str:
    """Through a name beside it: two servers must not have half a label, nor none, in common."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(label + "\n")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    return label


def _in_use(label: str) -> bool:
    """Whether any process still lives in a box of the server called `label`, of whatever driver."""
    layout = cgroups.detect()
    return any(_lives(cgroups.Trees(layout, name)) for name in _labels(layout, label))


def _lives(trees: cgroups.Trees) -> bool:
    trees.open()
    try:
        return any(trees.members(box) for box in trees.boxes())
    finally:
        trees.close()


def _anyone_left() -> bool:
    """Whether another server's boxes are on this machine."""
    return any(os.path.isdir(f"{root}/firkin") for root in cgroups.detect().roots.values())


def _labels(layout: cgroups.Layout, label: str) -> set[str]:
    found: set[str] = set()
    for root in layout.roots.values():
        with suppress(FileNotFoundError):
            found |= {name for name in os.listdir(f"{root}/firkin") if name.partition("-")[0] == label}
    return found
