"""The namespaces driver, alone and under the engine, keeps the same promises as the one in memory."""

from __future__ import annotations

import pytest

from firkin.drivers.namespaces.driver import NamespacesDriver, NamespacesTier
from firkin.testing import BackendContract, DriverContract
from firkin.testing.driver_layer_obligations import LayerObligations
from tests.contract.boxes import BoxBackendSuite, BoxSuite

pytestmark = pytest.mark.host


class TestNamespacesDriver(BoxSuite, DriverContract):
    kind = NamespacesDriver
    tier = NamespacesTier()


class TestLayersByPath(BoxSuite, LayerObligations):
    """The way of kernels that cannot take the layers of an overlay by descriptor."""

    kind = NamespacesDriver
    tier = NamespacesTier()
    options = {"ready_slots": "3", "attached_layers": "true"}  # noqa: RUF012 — a ClassVar of its base


class TestNamespacesBackend(BoxBackendSuite, BackendContract):
    kind = NamespacesDriver
    tier = NamespacesTier()
