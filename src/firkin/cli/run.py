"""``firkin run``: one command in a fresh sandbox, without a server. Nothing is left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from firkin.cli.options import MAX_SECONDS, Number, Size, Text, isolation_option, pairs, state_dir_option
from firkin.settings import read_settings


@click.command(context_settings={"allow_interspersed_args": False})
@click.option(
    "--template", type=Text(), default="base", show_default=True, help="A template's id, or a source such as debian:12."
)
@isolation_option
@click.option("--driver", type=Text(), help="What isolates (default namespaces).")
@click.option("--env", "-e", "env", multiple=True, help="NAME=VALUE for the command; repeatable.")
@click.option("--cwd", type=Text(), help="Working directory inside.")
@click.option("--user", type=Text(), help="User inside (default: the template's).")
@click.option("--memory", type=Size(), help="Memory limit, such as 512m.")
@click.option("--cpus", type=click.IntRange(1, 512), help="CPU limit.")
@click.option("--disk", type=Size(), help="Disk size, such as 2g.")
@click.option("--timeout", type=Number(0, MAX_SECONDS, above=True), help="Kill the command after so many seconds.")
@click.option("--internet", is_flag=True, help="Allow connections to public addresses.")
@click.option("--hardened", is_flag=True, help="Set no_new_privs: sudo inside stops working.")
@click.option("--tty", "-t", is_flag=True, help="Give the command a terminal.")
@state_dir_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end: exit code and output.")
@click.argument("argv", nargs=-1, required=True, type=click.UNPROCESSED)
def run(env: tuple[str, ...], driver: str | None, state_dir: Path | None, as_json: bool, **given: Any) -> int:
    """Run CMD in a fresh sandbox and end with its exit code.

    Standard input, output and error pass through; Ctrl-C reaches the command. A
    running server is not disturbed: the sandbox has a state folder of its own
    unless --state-dir is given or --template names one prepared there.
    """
    if as_json and given["tty"]:
        raise click.UsageError("--json keeps the output to the end, so it cannot be had with --tty")
    settings = read_settings({"driver": driver, "state_dir": state_dir, **_UNTIMED})
    from firkin.cli.captured_output import CapturedOutput
    from firkin.cli.event_loops import run_command  # the engine loads only here
    from firkin.cli.one_shot import OneShot, run_one

    request = OneShot(env=pairs(env, "--env"), keep_state=state_dir is not None, **given)
    captured = CapturedOutput() if as_json else None
    sandbox_id, code = run_command(run_one(request, settings, captured))
    if captured is not None:
        captured.show(sandbox_id, code)
    return code


# The command decides how long its sandbox lives; a server's lifetimes are not meant for it.
_UNTIMED = {"default_timeout_s": "none", "max_timeout_s": "none"}
