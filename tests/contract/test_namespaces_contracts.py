"""The namespaces driver, alone and under the engine, keeps the same promises as the one in memory."""

from __future__ import annotations

import pytest

from firkin.bootstrap.tier_assembly import build_driver
from firkin.drivers.namespaces.driver import NamespacesDriver, NamespacesTier
from firkin.law.driver import Driver
from firkin.settings import read_settings
from firkin.testing import BackendContract, DriverContract
from firkin.testing.driver_layer_obligations import LayerObligations
from tests.contract.boxes import BoxBackendSuite, BoxSuite

pytestmark = pytest.mark.host


class TestNamespacesDriver(BoxSuite, DriverContract):
    kind = NamespacesDriver
    tier = NamespacesTier()


@pytest.mark.slow
class TestNamespacesAmongTiers(TestNamespacesDriver):
    """As a server has it: behind the driver of all tiers, on a ground that others could share."""

    async def make_driver(self) -> Driver:
        given = {"state_dir": self._state, "driver_options": {"ready_slots": "3"}}
        return build_driver(read_settings(given))

    async def reopen(self, driver: Driver) -> Driver:
        await driver.aclose()
        later = await self.make_driver()
        await later.start()
        return later


class TestLayersByPath(BoxSuite, LayerObligations):
    """The way of kernels that cannot take the layers of an overlay by descriptor."""

    kind = NamespacesDriver
    tier = NamespacesTier()
    options = {"ready_slots": "3", "ready_boxes": "0", "attached_layers": "true"}  # noqa: RUF012 — a ClassVar of its base


class TestNamespacesBackend(BoxBackendSuite, BackendContract):
    kind = NamespacesDriver
    tier = NamespacesTier()
