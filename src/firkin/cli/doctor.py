"""``firkin doctor``: what works on this machine, what does not, why, and the command that would mend it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from firkin.cli.findings import Status
from firkin.cli.options import state_dir_option
from firkin.cli.output import json_option, plain, show_json
from firkin.settings import read_settings

if TYPE_CHECKING:
    from firkin.cli.findings import Finding

_MARKS = {Status.OK: "ok      ", Status.DEGRADED: "degraded", Status.MISSING: "MISSING "}


@click.command()
@click.option("--driver", help="The driver to look at (default namespaces).")
@click.option("--probe/--no-probe", default=True, help="Really boot one sandbox.")
@click.option(
    "--every-tier", is_flag=True, help="Also boot one of each further tier; a first microVM may take a minute."
)
@state_dir_option
@json_option
def doctor(driver: str | None, probe: bool, every_tier: bool, state_dir: Path | None, as_json: bool) -> int:
    """Check this machine. Ends with 1 when something that the driver needs is missing."""
    if every_tier and not probe:
        raise click.UsageError("--every-tier boots sandboxes, which --no-probe forbids; give one of them")
    settings = read_settings({"driver": driver, "state_dir": state_dir})
    from firkin.bootstrap.driver_loading import require_driver
    from firkin.cli.event_loops import run_command
    from firkin.cli.examination import examine

    require_driver(settings.driver)
    findings = run_command(examine(settings, probe=probe, every_tier=every_tier))
    if as_json:
        show_json({"ready": _ready(findings), "findings": [finding.as_json() for finding in findings]})
    else:
        _show(findings)
    return 0 if _ready(findings) else 1


def _ready(findings: list[Finding]) -> bool:
    return not any(finding.status is Status.MISSING for finding in findings)


def _show(findings: list[Finding]) -> None:
    for finding in findings:
        click.echo(f"{_MARKS[finding.status]}  {finding.name}: {plain(finding.detail)}")
        if finding.status is not Status.OK:
            click.echo(f"          why it matters: {finding.why}")
            if finding.mend:
                click.echo(f"          to mend it: {plain(finding.mend)}")
    click.echo("ready" if _ready(findings) else "not ready: see the lines marked MISSING")
