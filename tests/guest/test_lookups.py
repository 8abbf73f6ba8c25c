"""What was looked up once is not counted again, and nothing runs for that."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.guest.conftest import SOURCES

_PARTS = """
import _socket

ran = []

class Box:
    __slots__ = ("rarely_read",)
    def rarely_called(self): ran.append("method")
    @property
    def computed(self): ran.append("property")

class Odd:
    __slots__ = ("rarely_read",)
    def __getattr__(self, name): ran.append("answer")

class Begun(Exception):
    rarely_read = 1

def use(box):
    box.rarely_read = 1
    box.rarely_called
    (lambda one: one.rarely_read)(box)
    return box.rarely_read, _socket.SOMAXCONN, "".casefold, box.computed

def call():
    ran.append("function")
"""
_SCRIPT = """
import json, sys
sys.path[:0] = {paths!r}
from firkin.guest.lookups import look_up
from made import parts

if {look}:
    look_up("made")
assert not parts.ran, parts.ran
names = [sys.intern(name) for name in ("rarely_read", "rarely_called", "SOMAXCONN", "casefold")]
box = parts.Box()
before = [sys.getrefcount(name) for name in names]
parts.use(box)
after = [sys.getrefcount(name) for name in names]
print(json.dumps([now - then for now, then in zip(after, before)]))
"""


def _counted(folder: Path, *, look: bool) -> list[int]:
    """How many references to each name the first use of it adds, after a look and without."""
    package = folder / "made"
    package.mkdir(exist_ok=True)
    (package / "__init__.py").touch()
    (package / "parts.py").write_text(_PARTS)
    script = _SCRIPT.format(paths=[SOURCES, str(folder)], look=look)
    argv = [sys.executable, "-I", "-S", "-B", "-c", script]
    counted: list[int] = json.loads(subprocess.run(argv, capture_output=True, text=True, timeout=20, check=True).stdout)
    return counted


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="names are not counted any more")
def test_the_first_lookup_after_it_counts_no_reference(tmp_path: Path) -> None:
    assert 0 not in _counted(tmp_path, look=False)
    # Two lookups in a hundred meet in the same place of Python's table, wherever names happen to lie.
    assert any(_counted(tmp_path, look=True) == [0, 0, 0, 0] for _ in range(4))


def test_nothing_is_run_for_it(tmp_path: Path) -> None:
    _counted(tmp_path, look=True)  # looks at what ran
