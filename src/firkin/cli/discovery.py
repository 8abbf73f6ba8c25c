"""Which server a command talks to: the options, then E2B's variables, then the state folder."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import click

from firkin.bootstrap.state_files import SECRET_FILE, ServerRecord, read_server_record, server_secret
from firkin.cli.failures import CommandFailure
from firkin.e2b.operators import operator_token
from firkin.settings import read_settings


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerAddress:
    """Where the API is and the key to it. `pid` is known when it is this machine's own server.

    `ca_file` is the authority to trust besides the system's; empty when there is none.
    """

    url: str
    api_key: str = field(repr=False)
    pid: int | None = None
    driver: str = ""
    domain: str = ""
    ca_file: str = ""


def running_server(state_dir: Path | None) -> ServerRecord | None:
    """The live server of that state folder (default: the configured one)."""
    settings = read_settings({"state_dir": state_dir})
    record = read_server_record(settings.state_dir)
    return record if record is not None and record.alive else None


def find_server(url: str | None, api_key: str | None, state_dir: Path | None) -> ServerAddress:
    """The server to talk to. `CommandFailure` says how to start one when there is none."""
    from_env = state_dir is None
    url = url or (os.environ.get("E2B_API_URL") if from_env else None)
    key = api_key or (os.environ.get("E2B_API_KEY") if from_env else None)
    record = running_server(state_dir)
    folder = read_settings({"state_dir": state_dir}).state_dir
    if url is not None:
        base = _checked(url)
        if record is None and _is_of_a_dead_server(base, folder):
            raise _nothing_runs(folder)
        ours = record if record is not None and record.url == base else None
        if key is None and ours is None:
            raise click.UsageError("--url needs an API key; give --api-key or set E2B_API_KEY")
        return _address(base, key or (ours.api_key if ours else ""), ours)
    if record is None:
        raise _nothing_runs(folder)
    return _address(record.url, key or record.api_key, record)


def names_a_live_server(state_dir: Path) -> bool:
    """Whether the environment names a server, and not one that ended and left its address in it."""
    url = os.environ.get("E2B_API_URL")
    return bool(url) and not _is_of_a_dead_server(_checked(str(url)), state_dir)


def _nothing_runs(folder: Path) -> CommandFailure:
    return CommandFailure(f"no server runs on the state folder {folder}; start one with: firkin serve")


def _is_of_a_dead_server(url: str, folder: Path) -> bool:
    """Whether that is where the folder's last server was, which was killed and could not take its record away."""
    record = read_server_record(folder)
    return record is not None and record.url == url and not record.alive


def operator_of(state_dir: Path) -> str | None:
    """The operator's token, when the state folder's secret can be read."""
    readable = os.access(state_dir / SECRET_FILE, os.R_OK)
    return operator_token(server_secret(state_dir)) if readable else None


def _address(url: str, api_key: str, record: ServerRecord | None) -> ServerAddress:
    if record is None:
        return ServerAddress(url=url, api_key=api_key)
    return ServerAddress(
        url=url,
        api_key=api_key,
        pid=record.pid,
        driver=record.driver,
        domain=record.domain,
        ca_file=record.ca_file,
    )


def _checked(url: str) -> str:
    try:
        parts = urlsplit(url)
        port_is_valid = parts.port is None or 0 < parts.port < 65536
    except ValueError:
        port_is_valid = False
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_is_valid:
        raise click.UsageError(f"{url!r} is not a server's URL; write http://HOST:PORT")
    return url.rstrip("/")
