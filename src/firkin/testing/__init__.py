"""What every backend and every driver must do, as test classes to inherit; and a clock that tests own.

They need pytest and pytest-asyncio, which Firkin itself does not: ``pip install "firkin[testing]"``.
The classes carry the mark ``asyncio``, so they run in either mode of pytest-asyncio.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

try:  # before the suites do, to say what is missing in one sentence
    for _needed in ("pytest", "pytest_asyncio"):
        import_module(_needed)
except ModuleNotFoundError as missing:
    raise ImportError(
        f'firkin.testing needs {missing.name}, which is not installed: pip install "firkin[testing]"', name=missing.name
    ) from None
else:  # before they are imported: a failed assertion then shows the values that it compared
    import_module("pytest").register_assert_rewrite(*(f"{__name__}.{module.name}" for module in iter_modules(__path__)))

from firkin.testing.backend_contract import BackendContract
from firkin.testing.driver_contract import DriverContract
from firkin.testing.virtual_clock import VirtualClock, virtual_clock

__all__ = ["BackendContract", "DriverContract", "VirtualClock", "virtual_clock"]
