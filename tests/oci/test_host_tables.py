"""What a sandbox of the oci driver can put into the machine's tables: as little as one of the namespaces driver."""

from __future__ import annotations

import pytest

from tests.namespaces.test_host_tables import *  # noqa: F403 — every attack of that module
from tests.namespaces.test_host_tables import public_host

__all__ = ["public_host"]

pytestmark = [pytest.mark.host, pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]
