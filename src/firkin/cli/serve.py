"""``firkin serve``."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from firkin.cli.options import Place, Text, pairs, state_dir_option
from firkin.settings import read_settings


@click.command()
@click.option("--host", type=Text(), help="Address to listen on (default 127.0.0.1).")
@click.option("--port", type=int, help="Port to listen on (default 3000; 0 takes a free one).")
@state_dir_option
@click.option("--api-key", "api_keys", multiple=True, help="KEY, NAME:KEY or NAME:KEY:MAX_SANDBOXES; repeatable.")
@click.option(
    "--driver", type=Text(), help="What isolates unless a sandbox asks for another tier (default namespaces)."
)
@click.option(
    "--driver-option",
    "driver_options",
    multiple=True,
    help="NAME=VALUE for the driver, DRIVER.NAME=VALUE for another tier's; repeatable.",
)
@click.option("--domain", type=Text(), help="Domain under which sandboxes' ports are addressed.")
@click.option("--tls", is_flag=True, default=None, help="Serve HTTPS with the certificate of: firkin tls init.")
@click.option("--tls-cert", type=Place(), help="Serve HTTPS with this certificate (chain, PEM).")
@click.option("--tls-key", type=Place(), help="The key of --tls-cert (PEM, not encrypted).")
@click.option("--max-sandboxes", help="Most sandboxes that may run at once (default none: no limit).")
@click.option("--queue-max-pending", help="Most requests that may wait for room at once (default 256).")
@click.option("--queue-max-wait-ms", help="How long each of them may wait, in milliseconds (default 2000).")
@click.option("--kill-on-exit", is_flag=True, default=None, help="Kill every sandbox when the server ends.")
@click.option("--log-level", help="debug, info, warning or error (default info).")
@click.option("--json", "as_json", is_flag=True, help='Print the ready line as JSON: {"url": …}.')
@click.option("--config", type=Place(), help="Configuration file (default STATE_DIR/config.toml).")
def serve(
    config: Path | None, api_keys: tuple[str, ...], driver_options: tuple[str, ...], as_json: bool, **given: Any
) -> None:
    """Serve sandboxes to E2B's SDKs until SIGTERM or SIGINT.

    Prints one line, "firkin ready: URL", once it serves. Without
    --api-key a key is made once and kept in the state folder; "firkin env"
    prints it. Sandboxes outlive the server unless --kill-on-exit is given.
    """
    given["api_keys"] = list(api_keys) or None
    given["driver_options"] = pairs(driver_options, "--driver-option") or None
    settings = read_settings(given, config=config)
    _begin_to_load(settings.driver)
    from firkin.bootstrap import serve as serve_until_signalled  # the engine and the server load only here
    from firkin.cli.event_loops import run_server

    def announce(url: str) -> None:
        click.echo(json.dumps({"url": url}) if as_json else f"firkin ready: {url}")

    run_server(serve_until_signalled(settings, announce))


def _begin_to_load(driver: str) -> None:
    """The usual driver's helpers load beside the server, not after it."""
    if driver == "namespaces" and sys.platform == "linux":
        from firkin.drivers.ground.helper_process import spawn_ahead

        with suppress(OSError):  # whatever it is, the driver's start says it better
            spawn_ahead("firkin.drivers.namespaces.zygote", "firkin.drivers.ground.slot_maker")
