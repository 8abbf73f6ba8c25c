"""The oci driver, alone and under the engine, keeps the same promises as the others."""

from __future__ import annotations

import pytest

from firkin.drivers.oci.driver import OciDriver, OciTier
from firkin.testing import BackendContract, DriverContract
from tests.contract.boxes import BoxBackendSuite, BoxSuite

pytestmark = pytest.mark.host


class TestOciDriver(BoxSuite, DriverContract):
    kind = OciDriver
    tier = OciTier("")


@pytest.mark.slow
class TestOciBackend(BoxBackendSuite, BackendContract):
    kind = OciDriver
    tier = OciTier("")
