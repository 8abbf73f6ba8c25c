"""What every backend must do: all obligations in one class to inherit.

::

    class TestMyBackend(BackendContract):
        @pytest.fixture
        def make_backend(self, tmp_path):
            async def make(policies):
                backend = MyBackend(tmp_path)
                await backend.start(policies)
                return backend

            return make
"""

from __future__ import annotations

from firkin.testing.archive_obligations import ArchiveObligations
from firkin.testing.file_obligations import CopyObligations, FileObligations, LinkObligations, WatchObligations
from firkin.testing.fork_obligations import ForkObligations
from firkin.testing.history_obligations import HistoryObligations
from firkin.testing.lifecycle_obligations import CreateObligations, EndObligations, TemplateObligations
from firkin.testing.offer_obligations import (
    OfferObligations,
    PauseRefusalObligations,
    RefusalObligations,
    SnapshotRefusalObligations,
)
from firkin.testing.operation_obligations import (
    CapacityObligations,
    ObservationObligations,
    PortObligations,
    RestartObligations,
)
from firkin.testing.pause_obligations import PauseDeadlineObligations, PauseObligations
from firkin.testing.pause_race_obligations import PauseRaceObligations, PauseRestartObligations
from firkin.testing.process_obligations import RunObligations, StreamObligations, TerminalObligations
from firkin.testing.runtime_obligations import ShellObligations
from firkin.testing.snapshot_obligations import CaptureObligations, RestoreObligations
from firkin.testing.volume_obligations import VolumeFileObligations
from firkin.testing.warm_pool_obligations import WarmPoolObligations


class BackendContract(
    OfferObligations,
    TemplateObligations,
    CreateObligations,
    EndObligations,
    HistoryObligations,
    RunObligations,
    StreamObligations,
    TerminalObligations,
    FileObligations,
    LinkObligations,
    CopyObligations,
    WatchObligations,
    PortObligations,
    ObservationObligations,
    CapacityObligations,
    RestartObligations,
    PauseObligations,
    PauseDeadlineObligations,
    PauseRaceObligations,
    PauseRestartObligations,
    PauseRefusalObligations,
    CaptureObligations,
    RestoreObligations,
    ForkObligations,
    ArchiveObligations,
    VolumeFileObligations,
    SnapshotRefusalObligations,
    WarmPoolObligations,
    RefusalObligations,
    ShellObligations,
):
    """Supply the fixture `make_backend` of `firkin.testing.backend_suite.BackendSuite`."""
