"""``firkin sandbox``: the sandboxes of a running server, over its own HTTP API."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from firkin.cli.explanation import explain
from firkin.cli.failures import one_sentence
from firkin.cli.network import network
from firkin.cli.options import Text, isolation_option, pairs, server_options, volume_mount
from firkin.cli.output import json_option, plain, show_fields, show_json, show_rows
from firkin.cli.sandbox_lives import COMMANDS
from firkin.cli.talking import call, talk

if TYPE_CHECKING:
    from firkin.cli.client import ServerClient

_APART = ("journal", "envdAccessToken", "isolation")
_COLUMNS = ("sandboxID", "templateID", "state", "startedAt", "endAt", "metadata")


@click.group()
def sandbox() -> None:
    """Work with the sandboxes of a running server."""


@sandbox.command("list")
@click.option("--state", type=click.Choice(["running", "paused"]), help="Only those in this state.")
@click.option("--metadata", multiple=True, help="NAME=VALUE that must match; repeatable.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=1000, show_default=True, help="At most so many.")
@server_options
@json_option
def list_(state: str | None, metadata: tuple[str, ...], limit: int, as_json: bool, **where: Any) -> None:
    """List sandboxes, the newest first."""
    from firkin.cli.sandbox_calls import list_sandboxes

    wanted = pairs(metadata, "--metadata")
    rows = talk(where, lambda server: list_sandboxes(server, state=state, metadata=wanted, limit=limit))
    if as_json:
        show_json(rows)
    else:
        show_rows(rows, _COLUMNS, empty="no sandboxes")


@sandbox.command()
@click.option("--template", type=Text(), default="base", show_default=True, help="The template's id.")
@click.option("--timeout", type=click.IntRange(1), help="Seconds until it is killed (default: the server's, 300).")
@click.option("--env", "-e", "env", multiple=True, help="NAME=VALUE for every process inside; repeatable.")
@click.option("--metadata", multiple=True, help="NAME=VALUE kept with the record; repeatable.")
@click.option("--volume", "volumes", multiple=True, help="NAME:PATH[:ro], a volume to mount; repeatable.")
@click.option("--internet/--no-internet", default=False, help="Allow connections to public addresses.")
@click.option("--allow-out", multiple=True, help="An address or network that it may reach; repeatable.")
@click.option("--deny-out", multiple=True, help="One that it may not reach, unless it is allowed; repeatable.")
@isolation_option
@server_options
@json_option
def create(
    template: str,
    timeout: int | None,
    env: tuple[str, ...],
    metadata: tuple[str, ...],
    volumes: tuple[str, ...],
    internet: bool,
    isolation: str | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Create a sandbox and print its id."""
    body = {
        "templateID": template,
        "envVars": pairs(env, "--env"),
        "metadata": pairs(metadata, "--metadata"),
        "allow_internet_access": internet,
        "volumeMounts": [volume_mount(text) for text in volumes],
        "network": {"allowOut": list(given.pop("allow_out")), "denyOut": list(given.pop("deny_out"))},
    }
    for name, value in (("timeout", timeout), ("isolation", isolation)):
        if value is not None:
            body[name] = value
    made = call(given, "POST", "/v2/sandboxes", body=body)  # the older route's default is 15 s
    if as_json:
        show_json(made)
    else:
        click.echo(plain(made["sandboxID"]))


@sandbox.command(context_settings={"allow_interspersed_args": False})
@click.option("--env", "-e", "env", multiple=True, help="NAME=VALUE for the command; repeatable.")
@click.option("--cwd", type=Text(), help="Working directory inside.")
@click.option("--user", type=Text(), help="User inside (default: the template's).")
@click.option("--tty", "-t", is_flag=True, help="Give the command a terminal.")
@server_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end: exit code and output.")
@click.argument("sandbox_id")
@click.argument("argv", nargs=-1, required=True, type=click.UNPROCESSED)
def exec(
    sandbox_id: str,
    argv: tuple[str, ...],
    env: tuple[str, ...],
    tty: bool,
    as_json: bool,
    **given: Any,
) -> int:
    """Run CMD in a sandbox and end with its exit code. Input, output and signals pass through."""
    from firkin.cli.attachment import attach, terminal_size
    from firkin.cli.captured_output import CapturedOutput
    from firkin.cli.remote_process import RemoteCommand, RemoteProcess

    if as_json and tty:
        raise click.UsageError("--json keeps the output to the end, so it cannot be had with --tty")
    size = terminal_size() if tty else None
    inside = {name: given.pop(name) for name in ("cwd", "user")}
    command = RemoteCommand(argv=_words(argv), env=pairs(env, "--env"), pty=size, **inside)
    captured = CapturedOutput() if as_json else None

    async def run(server: ServerClient) -> int:
        process = await RemoteProcess.start(server, _id(sandbox_id), command)
        return await attach(process, tty_wanted=tty, show=captured)

    code = int(talk(given, run))
    if captured is not None:
        captured.show(sandbox_id, code)
    return code


def _words(argv: tuple[str, ...]) -> tuple[str, ...]:
    """The command without the ``--`` before it, which click keeps after the first argument."""
    if argv[0] != "--" and argv[0].startswith("-"):
        raise click.UsageError(f"{argv[0]} comes too late; options stand before the sandbox's id")
    words = argv[1:] if argv[0] == "--" else argv
    if not words:
        raise click.UsageError("name the command to run")
    return words


@sandbox.command()
@click.argument("sandbox_ids", nargs=-1)
@click.option("--all", "all_", is_flag=True, help="Kill every sandbox of this API key.")
@server_options
@json_option
def kill(sandbox_ids: tuple[str, ...], all_: bool, as_json: bool, **where: Any) -> int:
    """Kill sandboxes: their processes end at once and their files are removed."""
    if bool(sandbox_ids) == all_:
        raise click.UsageError("name the sandboxes to kill, or give --all")
    from firkin.cli.sandbox_calls import kill_sandboxes

    wanted = None if all_ else [_id(text) for text in sandbox_ids]
    killed, failures = talk(where, lambda server: kill_sandboxes(server, wanted))
    if as_json:
        show_json({"killed": killed, "errors": [str(failure) for failure in failures]})
    elif killed or not failures:
        click.echo("\n".join(map(plain, killed)) if killed else "no sandboxes")
    for failure in failures:
        click.echo(f"firkin: {one_sentence(failure)}", err=True)
    return max((failure.exit_code for failure in failures), default=0)


@sandbox.command()
@click.argument("sandbox_id")
@server_options
@json_option
def inspect(sandbox_id: str, as_json: bool, **where: Any) -> None:
    """Show a sandbox's record and what happened to it, also after its end; while it lives, what holds it in."""
    from firkin.cli.sandbox_calls import inspect_sandbox

    found = talk(where, lambda server: inspect_sandbox(server, _id(sandbox_id)))
    if as_json:
        show_json(found)
        return
    show_fields({name: value for name, value in found.items() if name not in _APART})
    facts = found.get("isolation") or {}
    show_fields({f"isolation.{name}": value for name, value in facts.items() if name != "sandbox_id"})
    for entry in found["journal"]:
        click.echo(f"{plain(entry['timestamp'])}  {plain(entry['message'])}")


@sandbox.command()
@click.argument("sandbox_id")
@click.option("--limit", type=click.IntRange(1, 10_000), default=1000, show_default=True, help="The newest so many.")
@server_options
@json_option
def logs(sandbox_id: str, limit: int, as_json: bool, **where: Any) -> None:
    """Show what the system has to say about a sandbox, the oldest first; also after its end."""
    from firkin.cli.sandbox_calls import sandbox_logs

    entries = talk(where, lambda server: sandbox_logs(server, _id(sandbox_id), limit))
    if as_json:
        show_json(entries)
        return
    for entry in entries:
        click.echo(f"{plain(entry['timestamp'])}  {plain(entry['level'])}  {plain(entry['message'])}")


def _id(text: str) -> str:
    """A checked id: what is typed becomes part of a URL."""
    from firkin.law.ids import SandboxId

    return SandboxId(text)


for _command in (explain, network, *COMMANDS):
    sandbox.add_command(_command)
