"""``firkin template``: over the running server, or directly on the state folder when none runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from firkin.cli.options import server_options
from firkin.cli.output import json_option, plain, show_json, show_rows

_COLUMNS = ("id", "state", "source", "size_bytes", "prepared_at", "failure")
_WORDS = ("", "host", "base")
_FILE_KINDS = ("local", "oci", "oci-archive", "docker-archive")


@click.group()
def template() -> None:
    """Prepare, list and delete templates."""


@template.command()
@click.argument("source")
@click.option("--id", "template_id", help="The template's id (default: made from the source).")
@click.option("--timeout", type=click.FloatRange(1, 86400), default=600.0, show_default=True, help="Seconds.")
@server_options
@json_option
def prepare(source: str, template_id: str | None, timeout: float, as_json: bool, **where: Any) -> None:
    """Prepare a template from SOURCE.

    SOURCE is host, a registry reference such as debian:12, oci:FOLDER[:TAG],
    oci-archive:FILE, docker-archive:FILE, a folder or tarball, or recipe:debian.
    """
    from firkin.cli.template_calls import PrepareRequest, prepare_template

    request = PrepareRequest(source=absolute_source(source), template_id=template_id, timeout_s=timeout)
    made = _run(prepare_template(_where(where), request, quiet=as_json))
    if as_json:
        show_json(made)
    else:
        click.echo(plain(made["id"]))


@template.command("list")
@server_options
@json_option
def list_(as_json: bool, **where: Any) -> None:
    """List templates."""
    from firkin.cli.template_calls import list_templates

    rows = _run(list_templates(_where(where)))
    if as_json:
        show_json(rows)
    else:
        show_rows(rows, _COLUMNS, empty="no templates")


@template.command()
@click.argument("template_id")
@server_options
@json_option
def delete(template_id: str, as_json: bool, **where: Any) -> None:
    """Delete a template that no sandbox uses."""
    from firkin.cli.template_calls import delete_template

    _run(delete_template(_where(where), template_id))
    if as_json:
        show_json({"deleted": template_id})
    else:
        click.echo(plain(template_id))


@template.command()
@server_options
@json_option
def prune(as_json: bool, **where: Any) -> None:
    """Remove at once the files that no template, snapshot or sandbox needs any more."""
    from firkin.cli.template_calls import prune_layers

    removed = _run(prune_layers(_where(where)))
    if as_json:
        show_json({"removed": removed})
    else:
        click.echo(f"removed {removed} layers")


def absolute_source(source: str) -> str:
    """The source with file names made absolute: the server has another working directory.

    A plain name is a folder or a tarball where one of that name exists, and an OCI
    layout where the folder holds one; else it is left to be an image's.
    """
    kind, separator, rest = source.partition(":")
    if separator and rest and kind in _FILE_KINDS:
        return f"{kind}:{_absolute(rest)}"
    if source.startswith((".", "/")) or (source not in _WORDS and not separator and os.path.exists(source)):
        path = _absolute(source)
        return f"oci:{path}" if (path / "oci-layout").is_file() else f"local:{path}"
    return source


def _absolute(name: str) -> Path:
    return Path(os.path.expanduser(name)).absolute()


def _where(given: dict[str, Any]) -> Any:
    from firkin.cli.template_calls import place_of

    return place_of(given["url"], given["api_key"], given["state_dir"])


def _run(work: Any) -> Any:
    from firkin.cli.event_loops import run_command

    return run_command(work)
