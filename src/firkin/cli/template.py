"""``firkin template``: over the running server, or directly on the state folder when none runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from firkin.cli.options import Number, Text, isolation_option, server_options
from firkin.cli.output import json_option, plain, show_json, show_rows

_COLUMNS = ("id", "state", "source", "size_bytes", "prepared_at", "failure")
_BUILD_COLUMNS = ("id", "name", "tags", "status", "created_at", "failure")
_WORDS = ("", "host", "base")
_FILE_KINDS = ("local", "oci", "oci-archive", "docker-archive")


@click.group()
def template() -> None:
    """Prepare, list and delete templates."""


@template.command()
@click.argument("source", type=Text())
@click.option("--id", "template_id", type=Text(), help="The template's id (default: made from the source).")
@click.option(
    "--env", "-e", "env", multiple=True, metavar="NAME=VALUE", help="A variable of every sandbox; repeatable."
)
@click.option("--setup", multiple=True, metavar="COMMAND", help="Run as the default user, in order; repeatable.")
@click.option("--start", type=Text(), metavar="COMMAND", help="Runs in every sandbox, in the background.")
@click.option("--ready", type=Text(), metavar="COMMAND", help="A sandbox is given out once this exits with 0.")
@click.option("--user", type=Text(), help="The default user (default: the source's).")
@click.option("--workdir", type=Text(), help="The default working directory (default: the source's).")
@click.option("--cpus", "cpu_count", type=click.IntRange(1), help="Of sandboxes that ask for none.")
@click.option("--memory", "memory_mb", type=click.IntRange(16), help="MiB, of sandboxes that ask for none.")
@isolation_option
@click.option("--force", is_flag=True, help="Use nothing that an earlier preparation left.")
@click.option("--timeout", type=Number(1, 86400), default=600.0, show_default=True, help="Seconds.")
@server_options
@json_option
def prepare(
    source: str, template_id: str | None, env: tuple[str, ...], timeout: float, as_json: bool, **more: Any
) -> None:
    """Prepare a template from SOURCE.

    SOURCE is host, a registry reference such as debian:12, oci:FOLDER[:TAG],
    oci-archive:FILE, docker-archive:FILE, a folder or tarball, recipe:debian,
    git:URL[@REF], or template:ID for one that is there already.
    """
    from firkin.cli.template_calls import default_id, prepare_template
    from firkin.e2b.native_templates import NewTemplate

    path = absolute_source(source)
    where = {name: more.pop(name) for name in ("url", "api_key", "state_dir")}
    request = NewTemplate(
        source=path,
        id=template_id or default_id(path),
        env=dict(_variable(one) for one in env),
        setup=list(more.pop("setup")),
        timeout_s=timeout,
        **more,
    )
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


@template.command()
@server_options
@json_option
def builds(as_json: bool, **where: Any) -> None:
    """List the builds of an API key at a running server, newest first."""
    from firkin.cli.template_calls import list_builds

    rows = _run(list_builds(_where(where)))
    if as_json:
        show_json(rows)
    else:
        show_rows(rows, _BUILD_COLUMNS, empty="no builds")


@template.command()
@click.argument("build_id")
@server_options
@json_option
def cancel(build_id: str, as_json: bool, **where: Any) -> None:
    """Stop a build that goes on at a running server."""
    from firkin.cli.template_calls import cancel_build

    _run(cancel_build(_where(where), build_id))
    if as_json:
        show_json({"cancelled": build_id})
    else:
        click.echo(plain(build_id))


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise click.UsageError(f"{text!r} is no variable; write NAME=VALUE")
    return name, value


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
