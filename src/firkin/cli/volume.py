"""``firkin volume``: volumes of a running server, and folders in and out of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from firkin.cli.options import Place, Size, server_options
from firkin.cli.output import json_option, plain, show_fields, show_json, show_rows
from firkin.cli.talking import call, talk

if TYPE_CHECKING:
    from firkin.cli.client import ServerClient

_COLUMNS = ("id", "name", "owner", "size_bytes", "created_at")
_ROUTE = "/firkin/v1/volumes"
_MIB = 1024 * 1024


@click.group()
def volume() -> None:
    """Volumes: disks that outlive sandboxes. VOLUME is a volume's name or its id.

    Mount one in a sandbox when that is created: firkin sandbox create --volume NAME:/data, or
    volume_mounts={"/data": "NAME"} in the SDK.
    """


@volume.command()
@click.argument("name")
@click.option("--size", type=Size(), help="Its size for good, e.g. 20g (default: the setting volume_disk_mb).")
@server_options
@json_option
def create(name: str, size: int | None, as_json: bool, **where: Any) -> None:
    """Make an empty volume for the API key's owner."""
    body = {"name": name} | ({} if size is None else {"sizeMB": -(-size // _MIB)})
    made = call(where, "POST", "/volumes", body=body)
    if as_json:
        show_json({"id": made["volumeID"], "name": made["name"]})
    else:
        click.echo(plain(made["volumeID"]))


@volume.command("list")
@server_options
@json_option
def list_(as_json: bool, **where: Any) -> None:
    """List volumes, the oldest first; those of every API key where the state folder can be read."""
    rows = call(where, "GET", _ROUTE)
    if as_json:
        show_json(rows)
    else:
        show_rows(rows, _COLUMNS, empty="no volumes")


@volume.command()
@click.argument("volume")
@server_options
@json_option
def show(volume: str, as_json: bool, **where: Any) -> None:
    """Show a volume and how full it is."""

    async def work(server: ServerClient) -> Any:
        from firkin.cli.volume_transfer import route_of

        return (await server.call("GET", await route_of(server, volume)))[0]

    found = talk(where, work)
    if as_json:
        show_json(found)
    else:
        show_fields(found)


@volume.command()
@click.argument("volume")
@server_options
def delete(volume: str, **where: Any) -> None:
    """Delete a volume that no sandbox has mounted, with all that is on it."""

    async def work(server: ServerClient) -> None:
        from firkin.cli.volume_transfer import route_of

        await server.call("DELETE", await route_of(server, volume))

    talk(where, work)
    click.echo(plain(volume))


@volume.command()
@click.argument("source", type=Place(exists=True))
@click.argument("target", metavar="VOLUME[:PATH]")
@click.option("--owner", metavar="UID[:GID]", help="Whose it all becomes inside (default: the ids that it has here).")
@server_options
def put(source: Path, target: str, owner: str | None, **where: Any) -> None:
    """Copy SOURCE to a volume, with modes, owners, times and links.

    A folder's content goes into the directory PATH. A file becomes PATH, or goes into it
    when PATH ends with a slash or is left out. The default user inside has the ids 1000:1000.
    """
    ids = None if owner is None else _ids(owner)

    async def work(server: ServerClient) -> int:
        from firkin.cli.volume_transfer import put

        return await put(server, source, target, owner=ids)

    count = talk(where, work)
    click.echo(f"{count} entries written to {plain(target)}")


@volume.command()
@click.argument("source", metavar="VOLUME[:PATH]")
@click.argument("target", type=Place())
@server_options
def get(source: str, target: Path, **where: Any) -> None:
    """Copy from a volume to TARGET, with modes, times and links; with owners if run as root.

    A directory's content goes into the folder TARGET. A file becomes TARGET, or goes
    into it when that is a folder. Setuid bits are left out.
    """

    async def work(server: ServerClient) -> int:
        from firkin.cli.volume_transfer import get

        return await get(server, source, target)

    count = talk(where, work)
    click.echo(f"{count} entries written to {plain(str(target))}")


def _ids(text: str) -> tuple[int, int]:
    uid, _, gid = text.partition(":")
    words = (uid, gid or uid)
    if not all(word.isascii() and word.isdigit() and int(word[:6]) <= 65535 for word in words):
        raise click.UsageError(f"--owner takes UID or UID:GID, each from 0 to 65535; got {text!r}")
    return int(words[0]), int(words[1])
