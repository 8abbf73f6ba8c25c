"""Other ways to run a command in isolation, measured in the same run, in turns with Firkin and on the same root.

A peer that is not installed, or that cannot run here, is reported with the
reason. Nothing is fetched: each runs a root made of this machine's programs.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from firkin.cli.bench.bundle import make_root
from firkin.cli.bench.peer_programs import PEERS, PeerUnable, Sampler
from firkin.cli.bench.raw_http import Inside, RawConnection, start_request, with_output
from firkin.cli.bench.samples import Lifecycle, Series
from firkin.cli.bench.stage import Stage
from firkin.cli.bench.templates import prepared
from firkin.cli.failures import CommandFailure

_OURS = "firkin"
_MOST = 100
_TROUBLES = (PeerUnable, CommandFailure, OSError, subprocess.SubprocessError)


@dataclass(slots=True)
class _Contestant:
    """Whoever takes part: what it is timed at, and what came of it."""

    system: str
    isolation: str
    samplers: Mapping[str, Sampler]
    values: dict[str, list[float]] = field(default_factory=dict)

    def take(self, number: int, *, keep: bool) -> None:
        for what, sample in self.samplers.items():
            value = sample(number)
            if keep:
                self.values.setdefault(what, []).append(value)


def measure_peers(stage: Stage) -> tuple[list[Series], dict[str, str]]:
    """The series, and why others gave none. Each round takes one sample of each, so that what disturbs disturbs all."""
    absent: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="firkin-peers-") as folder, ExitStack() as stack:
        root = Path(folder) / "root"
        try:
            make_root(root)
        except (OSError, subprocess.SubprocessError) as error:
            return [], {peer.name: f"no root could be made: {error}" for peer in PEERS}
        running = []
        for name, isolation, enter in _entries(stage, Path(folder), root):
            try:
                contestant = _Contestant(name, isolation, stack.enter_context(enter()))
                contestant.take(0, keep=False)
                running.append(contestant)
            except _TROUBLES as error:
                absent[f"peer {name}"] = str(error)
        _rounds(running, min(stage.amounts.n, _MOST), absent)
    return [series for contestant in running for series in _series(contestant)], absent


def _rounds(running: list[_Contestant], n: int, absent: dict[str, str]) -> None:
    for number in range(1, n + 1):
        for contestant in tuple(running):
            try:
                contestant.take(number, keep=True)
            except _TROUBLES as error:
                absent[f"peer {contestant.system}"] = f"it failed in round {number} of {n}: {error}"
                running.remove(contestant)


def _entries(
    stage: Stage, folder: Path, root: Path
) -> Iterator[tuple[str, str, Callable[[], AbstractContextManager[Mapping[str, Sampler]]]]]:
    if stage.state_dir is not None:
        yield _OURS, stage.isolation, partial(_ours, stage, root)
    for peer in PEERS:
        yield peer.name, peer.isolation, partial(peer.enter, folder, root)


@contextmanager
def _ours(stage: Stage, root: Path) -> Iterator[Mapping[str, Sampler]]:
    """Firkin with the same root, over plain HTTP: a server, a network and limits are in it all the same."""
    assert stage.state_dir is not None  # who calls has looked
    with prepared(stage, stage.state_dir, root) as template:
        here = replace(stage, template=template)
        with RawConnection(here) as other:
            kept = other.create()

            def run(number: int) -> float:
                began = time.perf_counter()
                inside = other.create()
                try:
                    return (time.perf_counter() - began) * 1000 + _echo(here, other, inside)
                finally:
                    other.kill(inside)

            try:
                yield {"run": run, "exec": lambda number: _echo(here, other, kept)}
            finally:
                with RawConnection(here) as last:  # the other one may have been idle for too long
                    last.kill(kept)


def _echo(stage: Stage, connection: RawConnection, inside: Inside) -> float:
    return with_output(connection.ask(start_request(stage, inside, user="root"))).first_ms


def _series(contestant: _Contestant) -> Iterator[Series]:
    for what, values in contestant.values.items():
        yield Series(
            metric=f"peer.{what}_ms",
            values=tuple(values),
            unit="ms",
            lifecycle=Lifecycle.HOT if what == "exec" else Lifecycle.COLD_PREPARED,
            isolation=contestant.isolation,
            system=contestant.system,
            events="RequestStart → FirstStdoutByte",
            workload=f"{what} of /bin/echo over the same root as the others, from start to the first byte of output",
        )
