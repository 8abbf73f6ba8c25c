"""Pauses, snapshots and forks through the official SDK, over the memory driver."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from e2b import Sandbox

from .conftest import RunningServer
from .lives import TestForks, TestPauses, TestSnapshots, made

__all__ = ["TestForks", "TestPauses", "TestSnapshots"]

pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning")


@pytest.fixture
def sdk(server: RunningServer) -> dict[str, Any]:
    return server.sdk()


@pytest.fixture
def sandbox(sdk: dict[str, Any]) -> Iterator[Sandbox]:
    with made(sdk) as running:
        yield running
