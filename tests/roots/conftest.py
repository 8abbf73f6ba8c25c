"""Preparation by hand: a store for layers, a folder to work in, and what was reported and made."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path

import pytest
import pytest_asyncio

from firkin.host.layer_store import LayerStore
from firkin.host.roots import HostRootPreparer
from firkin.host.syscalls import NewFilesystem
from firkin.law.driver import PreparedRoot
from firkin.law.templates import TemplateSpec, parse_source

Prepare = Callable[[str], Awaitable[PreparedRoot]]


def run_tool(argv: Sequence[str]) -> None:
    """Run a tool of the test's own to its end."""
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, timeout=30)


class LastRoot:
    """What was prepared last, and how a sandbox would see it."""

    def __init__(self) -> None:
        self.made: PreparedRoot | None = None
        self._views: dict[tuple[str, ...], int] = {}

    @property
    def path(self) -> Path:
        assert self.made is not None
        return self.view(self.made)

    def view(self, made: PreparedRoot) -> Path:
        """All its layers in one, as a path that also child processes can use; in no mount table."""
        root = made.root
        if not root.layers:
            return Path(root.base)
        key = (root.base, *root.layers)
        if key not in self._views:
            self._views[key] = _merged(key)
        return Path(f"/proc/{os.getpid()}/fd/{self._views[key]}")

    def close(self) -> None:
        for fd in self._views.values():
            os.close(fd)


def _merged(layers: Sequence[str]) -> int:
    overlay = NewFilesystem("overlay")
    for path in reversed(layers):
        fd = os.open(path, os.O_PATH | os.O_DIRECTORY)
        overlay.descriptor("lowerdir+", fd)
        os.close(fd)
    return overlay.mount()


@pytest.fixture
def into(tmp_path: Path) -> Path:
    folder = tmp_path / "template"
    folder.mkdir()
    return folder


@pytest_asyncio.fixture
async def store(tmp_path: Path) -> LayerStore:
    layers = LayerStore(tmp_path / "layers")
    await layers.load()
    return layers


@pytest.fixture
def progress() -> list[str]:
    return []


@pytest.fixture
def last() -> Iterator[LastRoot]:
    made = LastRoot()
    yield made
    made.close()


@pytest.fixture
def prepare(store: LayerStore, into: Path, progress: list[str], last: LastRoot) -> Prepare:
    """Prepare a source, written as `parse_source` reads it."""

    async def prepared(source: str) -> PreparedRoot:
        preparer = HostRootPreparer(layers=store)
        last.made = await preparer.prepare(TemplateSpec(source=parse_source(source)), into, progress.append)
        return last.made

    return prepared
