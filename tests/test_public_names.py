"""The public surface changes only on purpose."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import firkin
from firkin import law


def test_public_names_change_only_on_purpose() -> None:
    agreed = (Path(__file__).parent / "public_names.txt").read_text().split()
    assert sorted(firkin.__all__) == agreed


@pytest.mark.parametrize("name", sorted(firkin.__all__))
def test_every_public_name_can_be_had(name: str) -> None:
    assert getattr(firkin, name) is not None


def test_names_of_the_law_change_only_on_purpose() -> None:
    agreed = (Path(__file__).parent / "law_names.txt").read_text().split()
    assert sorted(law.__all__) == sorted(agreed)
    assert [name for name in agreed if getattr(law, name) is None] == []


def test_the_law_hands_out_every_public_name_of_its_modules() -> None:
    modules = [import_module(f"firkin.law.{module.name}") for module in pkgutil.iter_modules(law.__path__)]
    own = {
        name
        for module in modules
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", "") == module.__name__
    }
    assert own <= set(law.__all__)


def test_unknown_name_is_refused() -> None:
    for package in (firkin, law):
        with pytest.raises(AttributeError, match="nothing_like_it"):
            _ = package.nothing_like_it


def test_importing_firkin_loads_nothing_else() -> None:
    probe = "import sys, firkin; print([name for name in sys.modules if name.startswith('firkin.')])"
    found = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, timeout=30)
    assert found.stdout.strip() == "['firkin.version']"


def test_suites_without_pytest_say_what_to_install() -> None:
    probe = "import sys; sys.modules['pytest'] = None; import firkin.testing"
    found = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False, timeout=30)
    assert 'pip install "firkin[testing]"' in found.stderr.splitlines()[-1]
