"""What commands print: a table for people, JSON for programs. Guest text is made harmless for a terminal."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

Row = Mapping[str, Any]


def json_option(command: F) -> F:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")(command)


def show_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def text_fields(name: str, data: bytes) -> dict[str, str]:
    """Bytes for JSON: as text where they are UTF-8, else in base64; ``NAME_encoding`` says which."""
    try:
        return {name: data.decode(), f"{name}_encoding": "utf-8"}
    except UnicodeDecodeError:
        return {name: base64.b64encode(data).decode(), f"{name}_encoding": "base64"}


def show_rows(rows: Sequence[Row], columns: Sequence[str], *, empty: str) -> None:
    """Rows as aligned columns under their names; `empty` when there are none."""
    if not rows:
        click.echo(empty)
        return
    cells = [[plain(row.get(column, "")) for column in columns] for row in rows]
    widths = [max(len(line[at]) for line in [list(columns), *cells]) for at in range(len(columns))]
    for line in [[column.upper() for column in columns], *cells]:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def show_fields(record: Row) -> None:
    """One ``name  value`` line a field."""
    width = max((len(name) for name in record), default=0)
    for name, value in record.items():
        click.echo(f"{name.ljust(width)}  {plain(value)}")


def plain(value: Any) -> str:
    """Printable text on one line: a hostile name must not steer the terminal."""
    if value is None:
        return "-"
    if isinstance(value, Mapping | list | tuple):
        value = json.dumps(value, ensure_ascii=False, default=str) if value else "-"
    return "".join(letter if letter.isprintable() else f"\\x{ord(letter):02x}" for letter in str(value))
