"""The course of one run: which scenarios, in which order, on which tiers; and what was asked for and could not be had.

A scenario that fails is written down with its reason, and the run goes on: what
was measured is not lost. Only when the very first one fails, the server is not there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import click

from firkin.cli.bench.breakdown import breakdown
from firkin.cli.bench.commands import at_once, commands
from firkin.cli.bench.density import density
from firkin.cli.bench.leftovers import cycles
from firkin.cli.bench.lives import lives
from firkin.cli.bench.peers import measure_peers
from firkin.cli.bench.pools import NotOffered, hot_starts
from firkin.cli.bench.raw_http import RawConnection, call_request, made
from firkin.cli.bench.samples import Series
from firkin.cli.bench.scaling import by_concurrency, by_density
from firkin.cli.bench.stage import Amounts, Stage, isolation_of, system_of
from firkin.cli.bench.start_times import start_times
from firkin.cli.bench.starts import bursts, starts
from firkin.cli.bench.templates import templates
from firkin.cli.bench.traffic import traffic
from firkin.cli.event_loops import run_command
from firkin.cli.failures import CommandFailure, one_sentence

_PREPARED_WITHIN_S = 600.0
_LATER = (503, 504)
Step = Callable[[Stage], Iterable[Series]]

STEPS: dict[str, tuple[str, Step]] = {
    "starts": ("cold create, first output, kill", starts),
    "density": ("memory of idle ones and of the server", lambda stage: _run(density, stage)),
    "hot": ("creates from a warm pool", hot_starts),
    "commands": ("commands, batches, output", commands),
    "at-once": ("commands and creates at once", lambda stage: [*_run(at_once, stage), *_run(bursts, stage)]),
    "lives": ("pauses, snapshots, forks", lives),
    "phases": ("phases of a create and of a command", breakdown),
    "traffic": ("traffic to a port, uploads and downloads", lambda stage: _run(traffic, stage)),
    "templates": ("templates, builds and volumes", templates),
    "clients": ("figures by clients at once", lambda stage: _run(by_concurrency, stage)),
    "alive": ("figures by sandboxes alive", lambda stage: _run(by_density, stage)),
    "cycles": ("cycles and leftovers", lambda stage: _run(cycles, stage)),
    "programs": ("start of the server and of the command line", start_times),
}
OF_A_TIER = ("starts", "density", "hot", "commands", "at-once", "lives", "phases", "cycles")


def _run(work: Callable[[Stage], object], stage: Stage) -> list[Series]:
    return run_command(work(stage))  # type: ignore[arg-type]  # each is a coroutine of series


@dataclass(slots=True)
class Course:
    """What came of it so far. `absent` says of what is missing, why. `save` is called after each scenario."""

    save: Callable[[], None] = lambda: None
    series: list[Series] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)
    failed: bool = False

    def run(self, stage: Stage, names: Sequence[str]) -> None:
        for number, name in enumerate(names, 1):
            what, step = STEPS[name]
            click.echo(f"{stage.system} {number}/{len(names)} {what}", err=True, nl=False)
            began = time.monotonic()
            try:
                self.series.extend(step(stage))
            except NotOffered as error:
                self.absent[f"{what} ({stage.system})"] = str(error)
            except Exception as error:  # noqa: BLE001 — the SDK's own errors have no common base that is ours to name
                self._note(f"{what} ({stage.system})", error)
            finally:
                click.echo(f": {time.monotonic() - began:.1f} s", err=True)
            self.save()

    def _note(self, what: str, error: Exception) -> None:
        if not self.series and not self.absent:
            raise CommandFailure(f"{what}: {type(error).__name__}: {one_sentence(error)}") from error
        self.absent[what] = f"it failed: {type(error).__name__}: {one_sentence(error)}"
        self.failed = True

    def run_tier(self, stage: Stage, wish: str, names: Sequence[str]) -> None:
        """Those of `names` that every tier has, with fewer samples: a machine that is emulated takes its time."""
        try:
            status = _tier(stage, wish)
        except CommandFailure as error:
            self._note(f"tier {wish}", error)
            return
        if status.driver == stage.address.driver:
            return
        if not status.ready:
            self.absent[f"tier {wish}"] = status.reason or "this server does not offer it"
            return
        amounts = _fewer(stage.amounts)
        there = replace(
            stage,
            system=system_of(status.driver),
            isolation=isolation_of(status.driver),
            wish=wish,
            amounts=amounts,
        )
        try:
            _first(there)
        except (CommandFailure, OSError) as error:
            self._note(f"tier {wish}", error)
            return
        self.run(there, [name for name in OF_A_TIER if name in names])

    def run_peers(self, stage: Stage) -> None:
        click.echo("peers, in turns", err=True)
        try:
            series, absent = measure_peers(stage)
        except Exception as error:  # noqa: BLE001 — whatever it is, what was measured before is not lost
            self._note("peers", error)
            return
        self.series.extend(series)
        self.absent.update(absent)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Status:
    driver: str = ""
    ready: bool = False
    reason: str = ""


def _first(stage: Stage) -> None:
    """Have one made before the clock starts: a tier may have to prepare the template for itself, which goes on when
    whoever asked is told that it takes too long."""
    until = time.monotonic() + _PREPARED_WITHIN_S
    with RawConnection(stage, patience_s=_PREPARED_WITHIN_S) as connection:
        answer = connection.ask(call_request(stage, "POST", "/sandboxes", stage.new_sandbox))
        while answer.status in _LATER and time.monotonic() < until:
            time.sleep(1)
            answer = connection.ask(call_request(stage, "POST", "/sandboxes", stage.new_sandbox))
        connection.kill(made(answer))


def _tier(stage: Stage, wish: str) -> _Status:
    with RawConnection(stage) as connection:
        tiers = connection.ask(call_request(stage, "GET", "/firkin/v1/tiers")).json()
    for tier in tiers:
        if tier["isolation"] == wish:
            return _Status(driver=tier["driver"], ready=tier["ready"], reason="; ".join(tier["reasons"]))
    return _Status()


def _fewer(amounts: Amounts) -> Amounts:
    return replace(
        amounts,
        n=max(3, amounts.n * 3 // 10),
        burst=min(amounts.burst, 10),
        idle=min(amounts.idle, 20),
        alive=0,
        cycles=min(amounts.cycles, 50),
        dirty=0,
        at_once=0,
        output=min(amounts.output, 32),
    )
