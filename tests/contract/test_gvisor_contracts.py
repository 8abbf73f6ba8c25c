"""The gvisor driver, alone and under the engine, keeps the same promises as the others."""

from __future__ import annotations

import pytest

from firkin.drivers.gvisor.driver import GvisorDriver, GvisorTier
from firkin.testing import BackendContract, DriverContract
from tests.contract.boxes import BoxBackendSuite, BoxSuite

pytestmark = pytest.mark.host


class TestGvisorDriver(BoxSuite, DriverContract):
    kind = GvisorDriver
    tier = GvisorTier("")


class TestGvisorBackend(BoxBackendSuite, BackendContract):
    kind = GvisorDriver
    tier = GvisorTier("")
