"""Preparation by hand: a folder to fill, and what was reported."""

from __future__ import annotations

import subprocess
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest

from firkin.host.roots import HostRootPreparer
from firkin.law.driver import PreparedRoot
from firkin.law.templates import TemplateSpec, parse_source

Prepare = Callable[[str], Awaitable[PreparedRoot]]


def run_tool(argv: Sequence[str]) -> None:
    """Run a tool of the test's own to its end."""
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, timeout=30)


@pytest.fixture
def into(tmp_path: Path) -> Path:
    folder = tmp_path / "template"
    folder.mkdir()
    return folder


@pytest.fixture
def progress() -> list[str]:
    return []


@pytest.fixture
def prepare(into: Path, progress: list[str]) -> Prepare:
    """Prepare a source, written as `parse_source` reads it."""

    async def prepared(source: str) -> PreparedRoot:
        return await HostRootPreparer().prepare(TemplateSpec(source=parse_source(source)), into, progress.append)

    return prepared
