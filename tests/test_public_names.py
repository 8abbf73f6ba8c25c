"""The public surface changes only on purpose."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import firkin


def test_public_names_change_only_on_purpose() -> None:
    agreed = (Path(__file__).parent / "public_names.txt").read_text().split()
    assert sorted(firkin.__all__) == agreed


@pytest.mark.parametrize("name", sorted(firkin.__all__))
def test_every_public_name_can_be_had(name: str) -> None:
    assert getattr(firkin, name) is not None


def test_unknown_name_is_refused() -> None:
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = firkin.nothing_like_it


def test_importing_firkin_loads_nothing_else() -> None:
    probe = "import sys, firkin; print([name for name in sys.modules if name.startswith('firkin.')])"
    found = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, timeout=30)
    assert found.stdout.strip() == "['firkin.version']"
