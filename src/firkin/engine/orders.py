"""What is to be made: a spec that has been found possible, and the record that it begins with."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from firkin.engine.foundations import Foundation
from firkin.law.backend import TierStatus
from firkin.law.ids import SandboxId
from firkin.law.resources import SandboxResources
from firkin.law.sandboxes import SandboxInfo, SandboxSpec
from firkin.law.states import SandboxState


@dataclass(frozen=True, slots=True)
class Order:
    """`sandbox_id` None takes a fresh one. What is `pooled` waits for a caller when it is made."""

    spec: SandboxSpec
    foundation: Foundation
    tier: TierStatus
    resources: SandboxResources
    lifetime_s: float | None
    sandbox_id: SandboxId | None = None
    pooled: bool = False

    def info(self, sandbox_id: SandboxId, now: datetime) -> SandboxInfo:
        spec, foundation = self.spec, self.foundation
        return SandboxInfo(
            id=sandbox_id,
            state=SandboxState.CREATING,
            created_at=now,
            resources=self.resources,
            template_id=foundation.template_id,
            snapshot_id=foundation.snapshot_id,
            env={**foundation.env, **spec.env},
            metadata=dict(spec.metadata),
            network=spec.network,
            lifecycle=spec.lifecycle,
            volumes=spec.volumes,
            driver=self.tier.driver,
            isolation=self.tier.isolation,
            hardened=spec.hardened,
            owner=spec.owner,
            labels=dict(spec.labels),
            default_user=foundation.default_user,
            default_workdir=foundation.default_workdir,
        )


def could_become(made: Order, asked: Order) -> bool:
    """Whether what is made for the one can be handed out for the other, limits and network aside."""
    return (made.tier.driver, made.resources.disk_bytes) == (asked.tier.driver, asked.resources.disk_bytes)


def deadline_at(now: datetime, lifetime_s: float | None) -> datetime | None:
    return None if lifetime_s is None else now + timedelta(seconds=lifetime_s)
