"""``firkin sandbox pause, resume, fork, snapshot``."""

from __future__ import annotations

from typing import Any

import click

from firkin.cli.options import Text, server_options
from firkin.cli.output import json_option, plain, show_json
from firkin.cli.talking import call


def _id(text: str) -> str:
    """A checked id: what is typed becomes part of a URL."""
    from firkin.law.ids import SandboxId

    return SandboxId(text)


@click.command()
@click.argument("sandbox_id")
@click.option("--no-memory", is_flag=True, help="Keep the files alone: its programs end, and it boots anew.")
@server_options
def pause(sandbox_id: str, no_memory: bool, **where: Any) -> None:
    """Pause a sandbox until it is resumed. It has no deadline meanwhile."""
    call(where, "POST", f"/sandboxes/{_id(sandbox_id)}/pause", body={"memory": not no_memory})
    click.echo(plain(sandbox_id))


@click.command()
@click.argument("sandbox_id")
@click.option("--timeout", type=click.IntRange(0), default=300, show_default=True, help="Seconds until its deadline.")
@click.option("--no-memory", is_flag=True, help="Boot anew from its files although its memory was kept.")
@server_options
def resume(sandbox_id: str, timeout: int, no_memory: bool, **where: Any) -> None:
    """Let a paused sandbox run on."""
    body = {"timeout": timeout, "memory": not no_memory}
    call(where, "POST", f"/sandboxes/{_id(sandbox_id)}/resume", body=body)
    click.echo(plain(sandbox_id))


@click.command()
@click.argument("sandbox_id")
@click.option("--count", type=click.IntRange(1, 100), default=1, show_default=True, help="How many copies.")
@click.option("--timeout", type=click.IntRange(1), default=300, show_default=True, help="Seconds each copy lives.")
@server_options
@json_option
def fork(sandbox_id: str, count: int, timeout: int, as_json: bool, **where: Any) -> int:
    """Make copies of a running sandbox's files, each a sandbox of its own; print their ids."""
    body = {"count": count, "timeout": timeout}
    made = call(where, "POST", f"/sandboxes/{_id(sandbox_id)}/fork", body=body)
    if as_json:
        show_json(made)
    failed = 0
    for copy in made:
        if "sandbox" in copy and not as_json:
            click.echo(plain(copy["sandbox"]["sandboxID"]))
        elif "error" in copy:
            failed += 1
            click.echo(f"firkin: {plain(copy['error']['message'])}", err=True)
    return 1 if failed else 0


@click.command()
@click.argument("sandbox_id")
@click.option("--name", type=Text(), help="A name, with or without a tag: NAME or NAME:TAG.")
@server_options
@json_option
def snapshot(sandbox_id: str, name: str | None, as_json: bool, **where: Any) -> None:
    """Keep a running sandbox's files as a snapshot, from which sandboxes can be created; print its id."""
    body = {} if name is None else {"name": name}
    made = call(where, "POST", f"/sandboxes/{_id(sandbox_id)}/snapshots", body=body)
    if as_json:
        show_json(made)
    else:
        click.echo(plain(made["snapshotID"]))


COMMANDS = (pause, resume, fork, snapshot)
