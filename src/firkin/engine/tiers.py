"""Which tier a sandbox is made on, and what each tier offers: one driver may stand for several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from firkin.engine.offer import engine_offer
from firkin.law.backend import Preflight, TierStatus
from firkin.law.capabilities import Capabilities, CapabilityName, Permanent, TierGated
from firkin.law.driver import Driver, PreparesInstances, RootFilesystem, TieredDriver
from firkin.law.errors import BackendFailure, UnsupportedCapability
from firkin.law.ids import SandboxId
from firkin.law.isolation import Isolation
from firkin.law.resources import SandboxResources

_C = CapabilityName


class Tiers:
    """Over a `TieredDriver`, or over a driver that is the only one. What is known of a tier that is ready stays so."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._several = driver if isinstance(driver, TieredDriver) else None
        self._preparing = driver if isinstance(driver, PreparesInstances) else None
        self._ready: dict[str, tuple[TierStatus, TierStatus]] = {}

    @property
    def are_several(self) -> bool:
        return self._several is not None

    async def all(self) -> Sequence[TierStatus]:
        """See `SandboxBackend.tiers`."""
        if self._several is None:
            return [await self.default()]
        return [self._offered(status) for status in await self._several.tiers()]

    async def default(self) -> TierStatus:
        return await self._status(None)

    async def choose(self, operation: str, wish: Isolation | None) -> TierStatus:
        """The tier that `wish` means here; None is the default. `UnsupportedCapability` where it cannot be had.

        Nothing weaker is ever taken in its place.
        """
        status = await self._status(wish)
        alone = self._several is None and wish not in (None, status.isolation)
        if wish is not None and alone and (wish is not Isolation.STRONGEST or status.isolation is None):
            reason = Permanent(f"this runtime isolates by {status.driver!r} alone, not by {wish.value!r}")
            raise UnsupportedCapability(operation, _C.RUNTIME_CREATE, reason)
        if not status.preflight.ready:
            gate = TierGated(status.isolation or status.driver, status.preflight.reasons)
            raise UnsupportedCapability(operation, _C.RUNTIME_CREATE, gate)
        return status

    def prepared(self, tier: TierStatus, root: RootFilesystem, resources: SandboxResources) -> SandboxId | None:
        """See `PreparesInstances`."""
        return None if self._preparing is None else self._preparing.prepared(tier.isolation or "", root, resources)

    async def restoring(self, operation: str, driver: str, wish: Isolation | None) -> TierStatus:
        """The tier for what `driver` captured; there is no other that could take it. `UnsupportedCapability`."""
        if not self.knows(driver):
            reason = Permanent(f"it was captured by the driver {driver!r}; this runtime has {self._driver.name!r}")
            raise UnsupportedCapability(operation, _C.SNAPSHOT_RESTORE, reason)
        own = self.isolation_of(driver)
        status = await self._status(own)
        wanted = status if wish in (None, own) else await self.choose(operation, wish)
        if wanted.driver != status.driver:
            reason = Permanent(
                f"it was captured by {status.isolation or driver} and can be restored by that alone,"
                f" not by {wanted.isolation or wanted.driver}; leave the isolation out"
            )
            raise UnsupportedCapability(operation, _C.SNAPSHOT_RESTORE, reason)
        return await self.choose(operation, own)

    async def of(self, driver: str) -> TierStatus:
        """The tier of a sandbox's driver. One that this runtime does not have offers nothing, and says so."""
        known = self._ready.get(driver)
        if known is not None:
            return known[1]
        if self.knows(driver):
            return await self._status(self.isolation_of(driver))
        why = f"the driver {driver!r} is not part of this runtime"
        refused = Capabilities.all_unsupported(Permanent(why))
        return TierStatus(isolation=None, driver=driver, preflight=Preflight(False, (why,)), capabilities=refused)

    async def verifier(self, operation: str, driver: str) -> Driver:
        """The driver that can say whether a capture is its own. `UnsupportedCapability` with the reason."""
        if not self.knows(driver):
            why = f"it was captured by the driver {driver!r}; this runtime has {self._driver.name!r}"
            raise UnsupportedCapability(operation, _C.SNAPSHOT_IMPORT, Permanent(why))
        if self._several is None:
            return self._driver
        try:
            return await self._several.of(driver)
        except BackendFailure as error:
            gate = TierGated(self.isolation_of(driver) or driver, (f"it was captured by {driver!r}; {error}",))
            raise UnsupportedCapability(operation, _C.SNAPSHOT_IMPORT, gate) from error

    def knows(self, driver: str) -> bool:
        """Whether a driver of that name is here, ready or not."""
        return driver == self._driver.name or self.isolation_of(driver) is not None

    def isolation_of(self, driver: str) -> Isolation | None:
        """The tier of that driver; None for one that is no tier, and for one that is not here."""
        if self._several is not None:
            return self._several.isolation_of(driver)
        own = getattr(self._driver, "isolation", "") if driver == self._driver.name else ""
        return Isolation(own) if own else None

    async def _status(self, wish: Isolation | None) -> TierStatus:
        if self._several is not None:
            return self._offered(await self._several.tier(wish))
        known = self._ready.get(self._driver.name)
        return known[1] if known is not None else self._offered(await self._only())

    async def _only(self) -> TierStatus:
        driver = self._driver
        return TierStatus(
            isolation=self.isolation_of(driver.name),
            driver=driver.name,
            preflight=await driver.preflight(),
            capabilities=await driver.capabilities(),
            is_default=True,
            mounts_volumes=driver.volumes is not None,
            has_gateways=driver.egress is not None,
            captures=driver.captures,
        )

    def _offered(self, status: TierStatus) -> TierStatus:
        """Within what the engine does. The same status again costs nothing: it is asked for at every create."""
        known = self._ready.get(status.driver)
        if known is not None and known[0] == status:
            return known[1]
        if not status.preflight.ready:
            gate = TierGated(status.isolation or status.driver, status.preflight.reasons)
            return replace(status, capabilities=Capabilities.all_unsupported(gate))
        offered = replace(status, capabilities=engine_offer(status.capabilities))
        self._ready[status.driver] = (status, offered)
        return offered
