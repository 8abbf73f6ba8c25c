"""``firkin env``: what an E2B SDK must know to find this server."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click

from firkin.bootstrap.state_files import TRUST_FILE
from firkin.cli.discovery import find_server
from firkin.cli.options import server_options
from firkin.cli.output import json_option, show_json
from firkin.settings import read_settings

# The Python SDK holds one connection for each live command over HTTP/1.1, and 200 of them unless it is told.
_MAX_CONNECTIONS = "2000"
_SDK_KEY = re.compile(r"e2b_[0-9a-f]+")


@click.command()
@server_options
@json_option
def env(url: str | None, api_key: str | None, state_dir: Path | None, as_json: bool) -> None:
    """Print export lines for E2B's SDKs: eval "$(firkin env)"."""
    # The calling shell's own E2B_API_URL may be of another day: only options and the state folder count.
    server = find_server(url, api_key, state_dir or read_settings().state_dir)
    urls = dict.fromkeys(("E2B_API_URL", "E2B_SANDBOX_URL", "E2B_VOLUME_API_URL"), server.url)
    variables = {**urls, "E2B_API_KEY": server.api_key}
    if _SDK_KEY.fullmatch(server.api_key) is None:
        variables["E2B_VALIDATE_API_KEY"] = "false"
    variables["E2B_MAX_CONNECTIONS"] = _MAX_CONNECTIONS
    if server.domain:
        variables["E2B_DOMAIN"] = server.domain
    if server.ca_file:
        variables["SSL_CERT_FILE"] = str(Path(server.ca_file).with_name(TRUST_FILE))
        variables["NODE_EXTRA_CA_CERTS"] = server.ca_file
    if as_json:
        show_json(variables)
        return
    for name, value in variables.items():
        click.echo(f"export {name}={shlex.quote(value)}")
