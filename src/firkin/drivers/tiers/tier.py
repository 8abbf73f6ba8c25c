"""One tier: loaded when it is first asked about, looked at once, started when something is to run on it.

A machine may lack what a tier needs, and finding that out may take seconds. Neither
may cost anybody who never asks for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from firkin.law.backend import Preflight, TierStatus
from firkin.law.capabilities import Capabilities, TierGated
from firkin.law.driver import Driver, SharesVolumes
from firkin.law.errors import BackendFailure, FirkinError
from firkin.law.isolation import Isolation
from firkin.law.snapshots import SnapshotKind
from firkin.law.volumes import VolumeKeeper
from firkin.lifetimes import finish

LOOK_WITHIN_S = 20.0
START_WITHIN_S = 60.0
RELOOK_AFTER_S = 60.0  # at a machine that was not ready: somebody may have mended it
_log = logging.getLogger("firkin.drivers")
Make = Callable[[], Driver]


def nothing_lives() -> bool:
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class TierPlan:
    """How a tier is had. `load` may block and raise the law's errors; what it returns makes the driver at once.

    `folder` is the driver's own: where there is one, an earlier server may have left
    something. `lives` blocks; it tells whether sandboxes of this tier live on the machine.
    """

    isolation: Isolation
    driver: str
    folder: Path
    load: Callable[[], Make]
    lives: Callable[[], bool] = nothing_lives


class Tier:
    """See above. Everything may be asked by several at once."""

    def __init__(self, plan: TierPlan, volumes: VolumeKeeper | None, driver: Driver | None = None) -> None:
        """`volumes` is whose volumes the server's sandboxes have; `driver` is one that is loaded already."""
        self.plan = plan
        self._volumes = volumes
        self._driver = None if driver is None else self._sharing(driver)
        self._status: TierStatus | None = None
        self._looked_at = 0.0
        self._started = False
        self._looking = asyncio.Lock()
        self._starting = asyncio.Lock()

    @property
    def running(self) -> Driver | None:
        """Its driver, once it has been started."""
        return self._driver if self._started else None

    @property
    def was_used(self) -> bool:
        """Whether this or an earlier server has started it. Blocks, shortly."""
        return self.plan.folder.exists()

    async def status(self) -> TierStatus:
        """What is known of it, else what a look says."""
        async with self._looking:
            now = asyncio.get_running_loop().time()
            known = self._status
            if known is None or (not known.preflight.ready and now - self._looked_at > RELOOK_AFTER_S):
                known = self._status = await self._look()
                self._looked_at = asyncio.get_running_loop().time()
            return known

    async def started(self) -> Driver:
        """Its driver, ready to boot. `BackendFailure` says what this machine lacks; the next call tries again."""
        async with self._starting:
            if self._driver is not None and self._started:
                return self._driver
            status = await self.status()
            driver = self._driver
            if driver is None or not status.preflight.ready:
                gate = TierGated(self.plan.isolation, status.preflight.reasons)
                raise BackendFailure("start a tier", self.plan.driver, str(gate))
            await self.start(driver)
            return driver

    async def start(self, driver: Driver) -> None:
        """To its end, whoever waits: half a start leaves helpers behind."""
        await asyncio.to_thread(self.plan.folder.mkdir, mode=0o700, parents=True, exist_ok=True)
        try:
            await finish(driver.start(), within_s=START_WITHIN_S)
        except (OSError, TimeoutError) as error:
            raise BackendFailure("start a tier", self.plan.driver, str(error) or "it took too long") from error
        self._started = True
        _log.info("tier started isolation=%s driver=%s", self.plan.isolation, self.plan.driver)

    async def aclose(self) -> None:
        driver, self._started = self.running, False
        if driver is not None:
            await driver.aclose()

    async def _look(self) -> TierStatus:
        try:
            async with asyncio.timeout(LOOK_WITHIN_S):
                driver = await self._loaded()
                return self._found(driver, await driver.preflight(), await driver.capabilities())
        except TimeoutError:
            why = f"looking at what it needs took longer than {LOOK_WITHIN_S:g} s; try again when the machine is idle"
        except (FirkinError, OSError) as error:
            why = str(error)
        gate = TierGated(self.plan.isolation, (why,))
        return self._found(None, Preflight(ready=False, reasons=(why,)), Capabilities.all_unsupported(gate))

    async def _loaded(self) -> Driver:
        if self._driver is None:
            make = await asyncio.to_thread(self.plan.load)  # its code, and perhaps much that it needs
            self._driver = self._sharing(make())
        return self._driver

    def _sharing(self, driver: Driver) -> Driver:
        foreign = self._volumes is not None and driver.volumes is not self._volumes
        if foreign and self._volumes is not None and isinstance(driver, SharesVolumes):
            driver.share_volumes(self._volumes)
        return driver

    def _found(self, driver: Driver | None, preflight: Preflight, capabilities: Capabilities) -> TierStatus:
        return TierStatus(
            isolation=self.plan.isolation,
            driver=self.plan.driver,
            preflight=preflight,
            capabilities=capabilities,
            mounts_volumes=driver is not None and self._volumes is not None and driver.volumes is self._volumes,
            has_gateways=driver is not None and driver.egress is not None,
            captures=SnapshotKind.FILESYSTEM if driver is None else driver.captures,
        )
