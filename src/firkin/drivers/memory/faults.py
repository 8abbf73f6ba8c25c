"""What a test can make go wrong in the memory driver."""

from __future__ import annotations

import asyncio


class DriverFaults:
    """`fail_next_boot` and the like make one such act raise; `hold_boots` makes boots wait for `release_boots`;
    `boot_waits` is set once one does. `hold_ends` does the same to what is destroyed."""

    def __init__(self) -> None:
        self._failures: list[Exception] = []
        self._capture_failures: list[Exception] = []
        self._freeze_failures: list[Exception] = []
        self._thaw_failures: list[Exception] = []
        self._held = asyncio.Event()
        self._held.set()
        self.boot_waits = asyncio.Event()
        self._ends_held = asyncio.Event()
        self._ends_held.set()
        self.end_waits = asyncio.Event()

    def fail_next_boot(self, error: Exception) -> None:
        self._failures.append(error)

    def fail_next_capture(self, error: Exception) -> None:
        self._capture_failures.append(error)

    def fail_next_freeze(self, error: Exception) -> None:
        self._freeze_failures.append(error)

    def fail_next_thaw(self, error: Exception) -> None:
        self._thaw_failures.append(error)

    def hold_boots(self) -> None:
        self._held.clear()

    def release_boots(self) -> None:
        self._held.set()

    def hold_ends(self) -> None:
        self._ends_held.clear()

    def release_ends(self) -> None:
        self._ends_held.set()

    async def before_end(self) -> None:
        if not self._ends_held.is_set():
            self.end_waits.set()
            await self._ends_held.wait()

    async def before_boot(self) -> None:
        if self._failures:
            raise self._failures.pop(0)
        if not self._held.is_set():
            self.boot_waits.set()
            await self._held.wait()

    def before_capture(self) -> None:
        if self._capture_failures:
            raise self._capture_failures.pop(0)

    def before_freeze(self) -> None:
        if self._freeze_failures:
            raise self._freeze_failures.pop(0)

    def before_thaw(self) -> None:
        if self._thaw_failures:
            raise self._thaw_failures.pop(0)
