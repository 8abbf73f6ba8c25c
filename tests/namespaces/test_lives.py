"""Pauses, snapshots and forks of real sandboxes, through the official SDK."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from e2b import Sandbox
from tests.e2b.conftest import RunningServer, in_a_thread
from tests.e2b.lives import TestForks, TestPauses, TestSnapshots, made
from tests.namespaces.conftest import backend_at

__all__ = ["TestForks", "TestPauses", "TestSnapshots"]

pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    state_dir = tmp_path_factory.mktemp("state")
    with in_a_thread(lambda: backend_at(state_dir)) as running:
        yield running


@pytest.fixture
def sdk(server: RunningServer) -> dict[str, Any]:
    return server.sdk()


@pytest.fixture
def sandbox(sdk: dict[str, Any]) -> Iterator[Sandbox]:
    with made(sdk) as running:
        yield running
