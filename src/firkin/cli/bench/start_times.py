"""How long a user waits for the programs themselves: the server until it serves, the command line until it helps."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from firkin.cli.bench.official_sdk import timed
from firkin.cli.bench.own_server import serving
from firkin.cli.bench.samples import Lifecycle, Series
from firkin.cli.bench.stage import Stage

_WITHIN_S = 60.0
_MOST = 10


def start_times(stage: Stage) -> Iterator[Series]:
    rounds = min(_MOST, stage.amounts.slow)
    argv = [sys.executable, "-m", "firkin.cli.main", "--help"]
    run = timed(
        lambda: subprocess.run(argv, stdout=subprocess.DEVNULL, check=True, timeout=_WITHIN_S), rounds, warm_up=1
    )
    yield stage.series(
        "cli.help_ms", run, Lifecycle.WARM, "firkin --help, from start to end", events="ProcessStarted → ProcessExited"
    )
    driver = stage.address.driver or None
    with tempfile.TemporaryDirectory(prefix="firkin-bench-") as folder:
        values = []
        for _ in range(rounds + 1):  # the first makes what is made once
            with serving(driver, Path(folder)) as took_ms:
                values.append(took_ms)
    what = "firkin serve over a state folder that was used before, until it says that it serves"
    yield stage.series(
        "server.start_ms", values[1:], Lifecycle.WARM, what, events="ProcessStarted → first request possible"
    )
