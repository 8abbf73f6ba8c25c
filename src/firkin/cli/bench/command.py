"""``firkin bench``."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from firkin.cli.failures import BAD_INPUT, FAILURE, CommandFailure, one_sentence

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from firkin.cli.bench.samples import Series
    from firkin.cli.bench.stage import Amounts, Stage


@click.command()
@click.option("--n", type=click.IntRange(1, 100_000), default=100, show_default=True, help="Samples a fast metric.")
@click.option("--peers", is_flag=True, help="Measure docker, podman, bwrap, runc and crun in the same run.")
@click.option("--json", "json_file", type=click.Path(allow_dash=True), help="Write raw samples there (- for stdout).")
@click.option("--quick", is_flag=True, help="A few samples of most things: proves that it runs, nothing more.")
@click.option("--burst", type=click.IntRange(0, 10_000), default=100, show_default=True, help="Creates at once.")
@click.option("--idle", type=click.IntRange(0, 100_000), default=200, show_default=True, help="Idle ones to weigh.")
@click.option("--alive", type=click.IntRange(0, 100_000), default=500, show_default=True, help="Create beside so many.")
@click.option("--cycles", type=click.IntRange(0, 10**6), default=2000, show_default=True, help="Create, exec, kill.")
@click.option("--template", default="base", show_default=True, help="The template to create from.")
@click.option("--driver", help="The driver of the benchmark's own server (default namespaces).")
@click.option("--url", help="A running server to measure instead of one of the benchmark's own.")
@click.option("--api-key", help="The key to that server (default: E2B_API_KEY).")
@click.option("--state-dir", type=click.Path(file_okay=False, path_type=Path), help="That server's state folder.")
def bench(peers: bool, json_file: str | None, **given: Any) -> int:
    """Measure through the official SDK, with the number of samples, their tier and the isolation beside each figure.

    Starts a server of its own, unless --url or --state-dir names one. Ends with 1
    when something failed on the way: figures of a run with failures are no evidence.
    This takes several minutes, with --quick less than one. 0 leaves a scenario out.
    """
    from firkin.cli.bench import report
    from firkin.cli.bench.peers import Measured, measure_peers
    from firkin.cli.bench.sdk_scenarios import load_sdk
    from firkin.cli.bench.stage import machine, to_json

    if given["driver"] is not None and (given["url"] or given["state_dir"]):
        raise click.UsageError("--driver is for the benchmark's own server; leave it out with --url or --state-dir")
    if json_file is not None:
        _require_writable(json_file)
    client = f"e2b {_version(load_sdk())}"
    fingerprint = machine()
    amounts = _amounts(given)
    with _stage(given, amounts) as stage:
        series = _measure(stage)
    measured = measure_peers(amounts.n) if peers else Measured(series=[], absent={})
    series += measured.series
    if json_file is not None:
        _write(json_file, to_json(report.as_json(fingerprint, series, measured.absent, client)))
    if json_file != "-":
        report.show(fingerprint, series, measured.absent, client)
    return 1 if any(each.failures for each in series) else 0


def _amounts(given: Mapping[str, Any]) -> Amounts:
    from firkin.cli.bench.stage import QUICK, Amounts

    if given["quick"]:
        return QUICK
    return Amounts(batch=100, **{name: given[name] for name in ("n", "burst", "idle", "alive", "cycles")})


@contextmanager
def _stage(given: Mapping[str, Any], amounts: Amounts) -> Iterator[Stage]:
    """The server that the options name, or one of our own for the length of the block."""
    from firkin.cli.bench.stage import Stage, isolation_of, own_server
    from firkin.cli.discovery import find_server

    with ExitStack() as stack:
        if given["url"] or given["state_dir"]:
            address, folder = find_server(given["url"], given["api_key"], given["state_dir"]), given["state_dir"]
        else:
            address, folder = stack.enter_context(own_server(given["driver"]))
        yield Stage(
            address=address,
            template=given["template"],
            amounts=amounts,
            isolation=isolation_of(address.driver),
            state_dir=folder,
        )


def _measure(stage: Stage) -> list[Series]:
    from firkin.cli.bench.density import density
    from firkin.cli.bench.leftovers import cycles
    from firkin.cli.bench.lives import lives
    from firkin.cli.bench.sdk_scenarios import cold_and_kill, commands, concurrent
    from firkin.cli.bench.templates import templates
    from firkin.cli.bench.traffic import traffic
    from firkin.cli.event_loops import run_command

    stage.point_sdk_here()
    found: list[Series] = []
    steps: list[tuple[str, Callable[[], Iterable[Series]]]] = [
        ("cold create, first output, kill", lambda: cold_and_kill(stage)),
        ("commands", lambda: commands(stage)),
        ("commands and creates at once", lambda: run_command(concurrent(stage))),
        ("pauses, snapshots, forks", lambda: lives(stage)),
        ("traffic to a port, uploads and downloads", lambda: run_command(traffic(stage))),
        ("templates, builds and volumes", lambda: templates(stage)),
        ("many alive", lambda: run_command(density(stage))),
        ("cycles and leftovers", lambda: run_command(cycles(stage))),
    ]
    for number, (what, step) in enumerate(steps, 1):
        click.echo(f"{number}/{len(steps)} {what}", err=True)
        try:
            found += step()
        except CommandFailure:
            raise
        except Exception as error:  # the SDK's own errors have no common base that is ours to name
            raise CommandFailure(f"{what}: {type(error).__name__}: {one_sentence(error)}") from error
    return found


def _version(sdk: object) -> str:
    from importlib.metadata import version

    return version(getattr(sdk, "__name__", "e2b"))


def _require_writable(target: str) -> None:
    """Found out before the measuring, not after. What is there already stays as it is."""
    path = Path(target)
    if target == "-":
        return
    fresh = not path.exists()
    try:
        with path.open("ab"):
            pass
        if fresh:
            path.unlink()
    except OSError as error:
        raise _unwritable(target, error, BAD_INPUT) from None


def _unwritable(target: str, error: OSError, exit_code: int = FAILURE) -> CommandFailure:
    return CommandFailure(f"the report cannot be written to {target}: {error.strerror}", exit_code=exit_code)


def _write(target: str, text: str) -> None:
    try:
        with click.open_file(target, "w") as file:
            file.write(text + "\n")
    except OSError as error:
        raise _unwritable(target, error) from None
