"""Which tier a sandbox is made on, and what each tier offers: one driver may stand for several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from firkin.engine.offer import engine_offer
from firkin.law.backend import TierStatus
from firkin.law.capabilities import Capabilities, CapabilityName, Permanent, TierGated
from firkin.law.driver import Driver, TieredDriver
from firkin.law.errors import UnsupportedCapability
from firkin.law.isolation import Isolation


class Tiers:
    """Over a `TieredDriver`, or over a driver that is the only one."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._several = driver if isinstance(driver, TieredDriver) else None
        self._offers: dict[str, Capabilities] = {}

    async def all(self) -> Sequence[TierStatus]:
        """See `SandboxBackend.tiers`."""
        if self._several is None:
            return [await self._only()]
        return [self._offered(status) for status in await self._several.tiers()]

    async def choose(self, operation: str, wish: Isolation | None) -> TierStatus:
        """The tier that `wish` means here; None is the default. `UnsupportedCapability` where it cannot be had.

        Nothing weaker is ever taken in its place.
        """
        status = await self._status(wish)
        if wish not in (None, Isolation.STRONGEST, status.isolation) or (
            wish is Isolation.STRONGEST and status.isolation is None
        ):
            reason = Permanent(f"this runtime isolates by {status.driver!r} alone, not by {wish.value!r}")
            raise UnsupportedCapability(operation, CapabilityName.RUNTIME_CREATE, reason)
        if not status.preflight.ready:
            named = str(status.isolation or status.driver)
            raise UnsupportedCapability(
                operation, CapabilityName.RUNTIME_CREATE, TierGated(named, status.preflight.reasons)
            )
        return status

    async def of_driver(self, driver: str) -> TierStatus | None:
        """The tier whose driver that is, if it is one of this runtime's."""
        return next((status for status in await self.all() if status.driver == driver), None)

    def offer(self, driver: str) -> Capabilities:
        """What this engine offers for the sandboxes of that driver, which were made or adopted by it."""
        known = self._offers.get(driver)
        return known or Capabilities.all_unsupported(Permanent(f"the driver {driver!r} does not run here"))

    async def driver(self, name: str) -> Driver:
        """The driver of that name. `BackendFailure` when it cannot be started."""
        return self._driver if self._several is None else await self._several.of(name)

    async def _status(self, wish: Isolation | None) -> TierStatus:
        return await self._only() if self._several is None else self._offered(await self._several.tier(wish))

    async def _only(self) -> TierStatus:
        driver = self._driver
        own = getattr(driver, "isolation", "")
        return self._offered(
            TierStatus(
                isolation=Isolation(own) if own else None,
                driver=driver.name,
                preflight=await driver.preflight(),
                capabilities=await driver.capabilities(),
                is_default=True,
                mounts_volumes=driver.volumes is not None,
                has_gateways=driver.egress is not None,
            )
        )

    def _offered(self, status: TierStatus) -> TierStatus:
        """Within what the engine does."""
        offer = self._offers[status.driver] = (
            engine_offer(status.capabilities)
            if status.preflight.ready
            else Capabilities.all_unsupported(TierGated(status.isolation or status.driver, status.preflight.reasons))
        )
        return replace(status, capabilities=offer)
