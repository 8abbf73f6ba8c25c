"""``firkin bench``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from firkin.cli.failures import BAD_INPUT, FAILURE, CommandFailure
from firkin.cli.options import Number, Place, Text

if TYPE_CHECKING:
    from firkin.cli.bench.report import Report
    from firkin.cli.bench.stage import Amounts, Stage

_TIERS = ("microvm", "gvisor", "oci")
_REPORT = Place(dir_okay=False)


@click.command()
@click.option("--n", type=click.IntRange(1, 100_000), default=100, show_default=True, help="Samples a fast metric.")
@click.option("--peers", is_flag=True, help="Also docker, podman, bwrap, runc, crun and runsc, in turns.")
@click.option("--isolation", multiple=True, type=click.Choice(_TIERS), help="Also this tier; repeatable.")
@click.option("--json", "json_file", type=click.Path(allow_dash=True), help="Write raw samples there (- for stdout).")
@click.option("--html", "html_file", type=_REPORT, help="Write one page with plots there.")
@click.option("--markdown", "markdown_file", type=_REPORT, help="Write tables there, between its marks if it has them.")
@click.option("--from", "from_file", type=_REPORT, help="Measure nothing: take what --json wrote.")
@click.option("--compare", nargs=2, type=_REPORT, help="Measure nothing: two reports of --json, the older first.")
@click.option(
    "--threshold", type=Number(0, 10_000), default=10, show_default=True, help="Per cent that --compare lets pass."
)
@click.option("--quick", is_flag=True, help="A few samples of most things: proves that it runs, nothing more.")
@click.option("--only", multiple=True, help="Only this scenario; repeatable.")
@click.option("--burst", type=click.IntRange(0, 10_000), default=100, show_default=True, help="Creates at once.")
@click.option("--at-once", type=click.IntRange(0, 1000), default=100, show_default=True, help="Clients, at most.")
@click.option("--idle", type=click.IntRange(0, 100_000), default=200, show_default=True, help="Idle ones to weigh.")
@click.option("--alive", type=click.IntRange(0, 100_000), default=1000, show_default=True, help="Alive, at most.")
@click.option("--cycles", type=click.IntRange(0, 10**6), default=2000, show_default=True, help="Create, exec, kill.")
@click.option("--template", type=Text(), default="base", show_default=True, help="The template to create from.")
@click.option("--driver", type=Text(), help="The driver of the benchmark's own server (default namespaces).")
@click.option("--driver-option", "driver_options", multiple=True, help="NAME=VALUE for its drivers; repeatable.")
@click.option("--url", type=Text(), help="A running server to measure instead of one of the benchmark's own.")
@click.option("--api-key", type=Text(), help="The key to that server (default: E2B_API_KEY).")
@click.option("--state-dir", type=Place(file_okay=False), help="That server's state folder.")
def bench(
    json_file: str | None,
    html_file: Path | None,
    markdown_file: Path | None,
    from_file: Path | None,
    compare: tuple[Path, Path] | None,
    threshold: float,
    **given: Any,
) -> int:
    """Measure through the official SDK, with the number of samples, their tier and the isolation beside each figure.

    Starts a server of its own, unless --url or --state-dir names one. Ends with 1
    when something failed on the way: figures of a run with failures are no evidence.
    This takes about ten minutes, with --quick less than one. 0 leaves a scenario out.
    """
    from firkin.cli.bench.report import read_report, show

    if compare:
        return _compare(*compare, threshold)
    for target in (json_file, html_file, markdown_file):
        if target is not None:
            _require_writable(str(target))
    report, failed = (read_report(from_file), False) if from_file else _measure(given, json_file)
    _write_all(report, json_file, html_file, markdown_file)
    if json_file != "-":
        show(report)
    return 1 if failed or not report.series or any(each.failures for each in report.series) else 0


def _compare(before: Path, after: Path, threshold: float) -> int:
    from firkin.cli.bench.comparison import Verdict, unlike
    from firkin.cli.bench.comparison import compare as compared
    from firkin.cli.bench.report import number, print_rows, read_report

    old, new = read_report(before), read_report(after)
    for what in unlike(old.machine, new.machine):
        click.echo(f"the machines differ, so ratios are of machines, too: {what}", err=True)
    differences = compared(old, new, threshold=threshold / 100)
    rows = [
        (each.name, each.system, number(each.before), number(each.after), each.unit, _ratio(each.ratio), each.verdict)
        for each in differences
    ]
    print_rows([("metric", "system", "first p50", "second p50", "unit", "ratio", "difference"), *rows])
    worse = [each.name for each in differences if each.verdict is Verdict.REGRESSION]
    if worse:
        click.echo(f"worse by more than {threshold:g} % and than noise: {', '.join(worse)}", err=True)
    failed = {what: why for what, why in new.absent.items() if what not in old.absent}
    for what, why in failed.items():
        click.echo(f"not measured in the second run, though in the first: {what}: {why}", err=True)
    nothing = all(each.before is None or each.after is None for each in differences)
    if nothing:
        click.echo("nothing was compared: the two reports have no figure in common", err=True)
    return 1 if worse or failed or nothing else 0


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _measure(given: Mapping[str, Any], json_file: str | None) -> tuple[Report, bool]:
    """What was found, and whether a scenario failed. What there is so far is written after each scenario."""
    from firkin.cli.bench.course import STEPS, Course
    from firkin.cli.bench.machine import machine
    from firkin.cli.bench.official_sdk import load_sdk
    from firkin.cli.bench.report import Report, to_json

    _check(given, tuple(STEPS))
    client = f"e2b {_version(load_sdk())}"
    fingerprint = machine()

    def found() -> Report:
        return Report(machine=fingerprint, client=client, series=course.series, absent=course.absent)

    def save() -> None:
        if json_file not in (None, "-"):
            _write(str(json_file), to_json(found()) + "\n")

    course = Course(save=save)
    with _stage(given, _amounts(given)) as stage:
        stage.point_sdk_here()
        names = [name for name in STEPS if not given["only"] or name in given["only"]]
        course.run(stage, names)
        for wish in dict.fromkeys(given["isolation"]):
            course.run_tier(stage, wish, names)
        if given["peers"]:
            course.run_peers(stage)
    return found(), course.failed


def _check(given: Mapping[str, Any], names: Sequence[str]) -> None:
    if (given["driver"] is not None or given["driver_options"]) and (given["url"] or given["state_dir"]):
        option = "--driver" if given["driver"] is not None else "--driver-option"
        raise click.UsageError(f"{option} is for the benchmark's own server; leave it out with --url or --state-dir")
    unknown = [name for name in given["only"] if name not in names]
    if unknown:
        raise click.UsageError(f"no scenario is called {unknown[0]!r}; there are {', '.join(names)}")


def _amounts(given: Mapping[str, Any]) -> Amounts:
    from firkin.cli.bench.stage import QUICK, Amounts

    if given["quick"]:
        return QUICK
    return Amounts(**{name: given[name] for name in ("n", "burst", "at_once", "idle", "alive", "cycles")})


@contextmanager
def _stage(given: Mapping[str, Any], amounts: Amounts) -> Iterator[Stage]:
    """The server that the options name, or one of our own for the length of the block."""
    from firkin.cli.bench.own_server import own_server, sigterm_interrupts
    from firkin.cli.bench.stage import Stage, isolation_of, system_of
    from firkin.cli.discovery import find_server

    with ExitStack() as stack:
        stack.enter_context(sigterm_interrupts())
        if given["url"] or given["state_dir"]:
            address, folder = find_server(given["url"], given["api_key"], given["state_dir"]), given["state_dir"]
        else:
            address, folder = stack.enter_context(own_server(given["driver"], given["driver_options"]))
        yield Stage(
            address=address,
            template=given["template"],
            amounts=amounts,
            system=system_of(address.driver),
            isolation=isolation_of(address.driver),
            state_dir=folder,
        )


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


def _write_all(report: Report, json_file: str | None, html_file: Path | None, markdown_file: Path | None) -> None:
    from firkin.cli.bench.html_report import as_html
    from firkin.cli.bench.markdown import into_page
    from firkin.cli.bench.report import to_json

    def page() -> str:
        assert markdown_file is not None  # it is asked only then
        return into_page(markdown_file.read_text() if markdown_file.exists() else "", report)

    wanted: list[tuple[object, Callable[[], str]]] = [
        (json_file, lambda: to_json(report) + "\n"),
        (html_file, lambda: as_html(report)),
        (markdown_file, page),
    ]
    for target, make in wanted:
        if target is not None:
            _write(str(target), make())


def _write(target: str, text: str) -> None:
    try:
        with click.open_file(target, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise _unwritable(target, error) from None
