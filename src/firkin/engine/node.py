"""What the verbs of one node share. Made once, when the engine starts."""

from __future__ import annotations

from collections.abc import Coroutine
from dataclasses import dataclass

from firkin.engine.acts import Acts
from firkin.engine.admission import Admission, HostGauge
from firkin.engine.builds import LocalBuilds
from firkin.engine.clock import Clock
from firkin.engine.deadlines import Deadlines
from firkin.engine.egress import Egress
from firkin.engine.events import EventBus
from firkin.engine.figures import Figures
from firkin.engine.launches import Launches
from firkin.engine.layer_uses import LayerKeeping
from firkin.engine.ledger import Ledger
from firkin.engine.links import Links
from firkin.engine.logs import LogStore
from firkin.engine.port_exposures import PortExposures
from firkin.engine.pressure import Pressure
from firkin.engine.programs import Programs
from firkin.engine.records import Records
from firkin.engine.roster import Roster
from firkin.engine.sampling import Samples
from firkin.engine.secret_store import SecretStore
from firkin.engine.snapshot_store import SnapshotStore
from firkin.engine.spare import SpareRoom
from firkin.engine.started_machines import StartedMachines
from firkin.engine.templates import TemplateRegistry
from firkin.engine.tiers import Tiers
from firkin.engine.volume_registry import VolumeRegistry
from firkin.engine.volume_threads import VolumeThreads
from firkin.engine.waiting_line import WaitingLine
from firkin.engine.warm_pools import WarmPools
from firkin.engine.webhooks import LocalWebhooks
from firkin.law.capabilities import Capabilities, CapabilityName
from firkin.law.driver import Driver
from firkin.law.ids import SandboxId
from firkin.law.policies import Policies
from firkin.lifetimes import Children


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """`offer` is the default tier's."""

    driver: Driver
    clock: Clock
    policies: Policies
    offer: Capabilities
    tiers: Tiers
    children: Children
    acts: Acts
    records: Records
    events: EventBus
    logs: LogStore
    ledger: Ledger
    roster: Roster
    admission: Admission
    gauge: HostGauge
    spare: SpareRoom
    line: WaitingLine
    launches: Launches
    pressure: Pressure
    deadlines: Deadlines
    templates: TemplateRegistry
    keeping: LayerKeeping
    snapshots: SnapshotStore
    started: StartedMachines
    warm: WarmPools
    volumes: VolumeRegistry
    volume_threads: VolumeThreads
    links: Links
    egress: Egress
    exposures: PortExposures
    figures: Figures
    samples: Samples
    programs: Programs
    secrets: SecretStore | None
    webhooks: LocalWebhooks
    builds: LocalBuilds

    def background(self, work: Coroutine[object, object, None], *, name: str) -> None:
        self.children.start(work, name=name)


async def offer_for(node: Node, sandbox_id: SandboxId) -> Capabilities:
    """What is offered for a sandbox: its tier's; for an unknown one the default's, so that refusals come first."""
    resident = node.roster.get(sandbox_id)
    return node.offer if resident is None else (await node.tiers.of(resident.info.driver)).capabilities


async def require(node: Node, operation: str, sandbox_id: SandboxId, *names: CapabilityName) -> None:
    """`UnsupportedCapability` for what a sandbox's tier does not offer."""
    (await offer_for(node, sandbox_id)).require(operation, *names)


def room_on_disk(node: Node, *, now: bool = False) -> int:
    """How much of the host's disk a copy may take, in bytes. With `now` what was written since the last look counts."""
    free = node.gauge.disk_now() if now else node.gauge.read().disk_bytes
    return max(0, free - node.policies.capacity.disk_floor_bytes)
