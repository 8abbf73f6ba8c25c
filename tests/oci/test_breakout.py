"""The attacks that the namespaces driver withstands, on a sandbox of the oci driver."""

from __future__ import annotations

import pytest

from tests.namespaces.test_breakout import *  # noqa: F403 — every attack of that module

pytestmark = [pytest.mark.host, pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]
