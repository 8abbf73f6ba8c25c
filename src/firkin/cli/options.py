"""Options that several commands share, and how texts on the command line become values."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from firkin.law.resources import GIB, MIB

F = TypeVar("F", bound=Callable[..., Any])

MAX_SECONDS = 320_000_000
"""Some ten years: as many as a setting may have."""

_EMPTY = "it is empty; give it a value or leave it out"
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


class Text(click.ParamType[str]):
    """A text that says something. An empty one is mostly a variable that was not set; it must not mean a default."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not value:
            self.fail(_EMPTY, param, ctx)
        return str(value)


class Place(click.Path):
    """A path on this machine. click alone takes an empty one for the folder that one is in."""

    def __init__(self, *, exists: bool = False, file_okay: bool = True, dir_okay: bool = True) -> None:
        super().__init__(exists=exists, file_okay=file_okay, dir_okay=dir_okay, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value in ("", b""):
            self.fail(_EMPTY, param, ctx)
        return super().convert(value, param, ctx)


class Number(click.FloatRange):
    """A number between two bounds. click alone lets ``nan`` pass, which is neither below nor above any."""

    def __init__(self, least: float, most: float, *, above: bool = False) -> None:
        """`above`: `least` itself is too little."""
        super().__init__(min=least, max=most, min_open=above)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a number of the range {self._describe_range()}.", param, ctx)
        return number


def state_dir_option(command: F) -> F:
    return click.option("--state-dir", type=Place(file_okay=False), help="The folder that the server keeps.")(command)


def server_options(command: F) -> F:
    """--url, --api-key and --state-dir: which server to talk to."""
    for option in (
        state_dir_option,
        click.option("--api-key", type=Text(), help="The API key (default: E2B_API_KEY, then the state folder's)."),
        click.option(
            "--url", type=Text(), help="The server (default: E2B_API_URL, then the one that the state folder names)."
        ),
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
