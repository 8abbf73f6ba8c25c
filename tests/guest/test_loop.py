"""The agent's time stands still while its sandbox is frozen."""

from __future__ import annotations

import pytest

from firkin.guest import loop as loops
from firkin.guest.loop import Loop


class _Kernel:
    """A clock, and an epoll that waits by moving it; `freeze_s` is added to the next wait."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.freeze_s = 0.0
        self.waits: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def poll(self, timeout: float, most: int) -> list[tuple[int, int]]:
        self.waits.append(timeout)
        self.now += timeout + self.freeze_s
        self.freeze_s = 0.0
        return []


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> _Kernel:
    made = _Kernel()
    monkeypatch.setattr(loops, "monotonic", made.monotonic)
    return made


def _loop(kernel: _Kernel) -> Loop:
    loop = Loop()
    loop._epoll = kernel  # type: ignore[assignment]  # what a frozen kernel would do
    return loop


def test_a_timer_keeps_what_it_had_left_when_the_sandbox_was_frozen(kernel: _Kernel) -> None:
    loop, rung = _loop(kernel), []
    loop.after(60, lambda: rung.append(kernel.now))
    loop.turn()
    kernel.freeze_s = 3600
    while not rung:
        loop.turn()
    assert 1000 + 3660 <= rung[0] <= 1000 + 3660 + loops._TICK_S
    assert max(kernel.waits) <= loops._TICK_S


def test_a_little_lateness_is_no_freeze(kernel: _Kernel) -> None:
    loop, rung = _loop(kernel), []
    loop.after(3, lambda: rung.append(kernel.now))
    kernel.freeze_s = 0.5
    loop.turn()
    assert rung == [1003.5]
