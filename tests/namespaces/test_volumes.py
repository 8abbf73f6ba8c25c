"""Volumes of real sandboxes, through the official SDK."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from e2b import Sandbox, Volume
from e2b.exceptions import SandboxException, VolumeException
from tests.e2b.conftest import RunningServer, in_a_thread
from tests.e2b.lives import made
from tests.e2b.volume_lives import VolumeLives, api_options, made_volume, unique
from tests.namespaces.conftest import backend_at

pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    state_dir = tmp_path_factory.mktemp("state")
    with in_a_thread(lambda: backend_at(state_dir)) as running:
        yield running


class TestVolumes(VolumeLives):
    pass
