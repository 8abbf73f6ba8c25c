"""Options that several commands share, and how texts on the command line become values."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from firkin.law.resources import GIB, MIB

F = TypeVar("F", bound=Callable[..., Any])

_SIZE = re.compile(r"([0-9]{1,15})(k|m|g|t)?(i?b)?", re.IGNORECASE)
_UNITS = {"": 1, "k": 1024, "m": MIB, "g": GIB, "t": 1024 * GIB}


class Size(click.ParamType[int]):
    """Bytes, or a number with k, m, g or t: ``512m``."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = _SIZE.fullmatch(str(value))
        if match is None:
            self.fail(f"{value!r} is not a size; write bytes or a number with k, m, g or t, such as 512m", param, ctx)
        return int(match[1]) * _UNITS[(match[2] or "").lower()]


def state_dir_option(command: F) -> F:
    return click.option(
        "--state-dir", type=click.Path(file_okay=False, path_type=Path), help="The folder that the server keeps."
    )(command)


def server_options(command: F) -> F:
    """--url, --api-key and --state-dir: which server to talk to."""
    for option in (
        state_dir_option,
        click.option("--api-key", help="The API key (default: E2B_API_KEY, then the state folder's)."),
        click.option("--url", help="The server (default: E2B_API_URL, then the one that the state folder names)."),
    ):
        command = option(command)
    return command


def isolation_option(command: F) -> F:
    return click.option(
        "--isolation",
        type=click.Choice(["namespaces", "oci", "gvisor", "microvm", "strongest"]),
        help="The tier of isolation, or the strongest that there is (default: the template's, else the server's).",
    )(command)


def pairs(words: Sequence[str], option: str) -> dict[str, str]:
    """NAME=VALUE words as a mapping; a usage error names the option and the word that is wrong."""
    found: dict[str, str] = {}
    for word in words:
        name, separator, value = word.partition("=")
        if not separator or not name:
            raise click.UsageError(f"{option} takes NAME=VALUE; got {word!r}")
        found[name] = value
    return found


def volume_mount(text: str) -> dict[str, Any]:
    """``NAME:PATH`` or ``NAME:PATH:ro`` as a create request has it. The server says what is wrong with a path."""
    name, _, path = text.partition(":")
    read_only = path.endswith(":ro")
    if not name or not path.startswith("/"):
        raise click.UsageError(f"--volume takes NAME:PATH or NAME:PATH:ro, the path absolute; got {text!r}")
    mount: dict[str, Any] = {"name": name, "path": path.removesuffix(":ro")}
    return {**mount, "readOnly": True} if read_only else mount
