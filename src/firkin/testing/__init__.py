"""What every backend and every driver must do, as test classes to inherit; and a clock that tests own.

These modules need pytest and pytest-asyncio, which Firkin itself does not.
"""

from __future__ import annotations

from firkin.testing.backend_contract import BackendContract
from firkin.testing.driver_contract import DriverContract
from firkin.testing.virtual_clock import VirtualClock, virtual_clock

__all__ = ["BackendContract", "DriverContract", "VirtualClock", "virtual_clock"]
