"""The agent's time stands still while its sandbox is frozen."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from firkin.guest import loop as loops
from firkin.guest.accounts import Account
from firkin.guest.loop import Loop
from firkin.guest.processes import Process, Processes
from firkin.guest.spawn import Program
from firkin.wire.operations import EXIT_KEPT_S


class _Kernel:
    """A clock, and an epoll that waits by moving it. The next wait is in a freeze of `freeze_s` or late by `late_s`."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.freeze_s = 0.0
        self.late_s = 0.0
        self.waits: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def poll(self, timeout: float, most: int) -> list[tuple[int, int]]:
        self.waits.append(timeout)
        self.now += max(timeout, self.freeze_s) + self.late_s
        self.freeze_s = self.late_s = 0.0
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
    assert 1000 + 3660 - loops._TICK_S <= rung[0] <= 1000 + 3660
    assert max(kernel.waits) <= loops._TICK_S


def test_a_freeze_in_the_middle_of_a_turn_is_noticed_too(kernel: _Kernel) -> None:
    loop, rung = _loop(kernel), []

    def frozen() -> None:
        kernel.now += 3600

    loop.after(1, frozen)
    loop.after(2, lambda: rung.append(kernel.now))
    while not rung:
        loop.turn()
    assert rung == [1000 + 3602]


def test_many_freezes_cost_a_timer_a_second_each_at_most(kernel: _Kernel) -> None:
    loop, rung = _loop(kernel), []
    loop.after(60, lambda: rung.append(kernel.now))
    for _ in range(10):
        kernel.freeze_s = 100
        loop.turn()
    while not rung:
        loop.turn()
    assert rung[0] >= 1000 + 10 * 100 + 60 - 10


def test_a_freeze_takes_nothing_from_the_time_an_exit_is_kept(kernel: _Kernel) -> None:
    loop = _loop(kernel)
    table = Processes(loop)
    ended = Process(table, 7, Program(Account("root", 0, 0, "/", "/bin/sh", ()), ["true"], "/", {}), {}, None)
    table.add(ended)
    ended.reaped(0)
    kernel.freeze_s = 3600
    loop.turn()
    assert table.by_pid(7) is ended
    while table.by_pid(7) is ended:
        loop.turn()
    assert kernel.now >= 1000 + 3600 + EXIT_KEPT_S - 1
    assert loop._due() == -1, "nothing is waited for any more"


def test_a_little_lateness_is_no_freeze(kernel: _Kernel) -> None:
    loop, rung = _loop(kernel), []
    loop.after(1, lambda: rung.append(kernel.now))
    kernel.late_s = 0.5
    loop.turn()
    assert rung == [1001.5]


class _Busy(_Kernel):
    """Something is ready in each of the next `turns` waits, after `wait_s`."""

    turns = 0
    wait_s = 0.1

    def fileno(self) -> int:
        return 77

    def poll(self, timeout: float, most: int) -> list[tuple[int, int]]:
        if not self.turns:
            return super().poll(timeout, most)
        self.turns -= 1
        self.now += self.wait_s
        return [(99, loops.READ)]


@pytest.fixture
def busy(monkeypatch: pytest.MonkeyPatch) -> _Busy:
    made = _Busy()
    monkeypatch.setattr(loops, "monotonic", made.monotonic)
    return made


class _Rests:
    """Rests in which nothing happens, which begin `at` and had `patience`. The first lasts `freeze_s` longer."""

    def __init__(self, busy: _Busy, *, freeze_s: float = 0.0, fails: bool = False) -> None:
        self._busy = busy
        self._freeze_s = freeze_s
        self._fails = fails
        self.at: list[float] = []
        self.patience: list[float] = []

    def __call__(self, epoll: int, patience: float) -> float:
        assert epoll == self._busy.fileno()
        self.at.append(self._busy.now)
        self.patience.append(patience)
        if self._fails:
            raise OSError(12, "no rest")
        self._busy.now += max(0.0, patience) + self._freeze_s
        self._freeze_s = 0.0
        return patience


def test_a_rest_begins_when_nothing_was_ready_for_a_moment(busy: _Busy) -> None:
    loop, rests = _loop(busy), _Rests(busy)
    loop.at_rest(rests)
    for stretch in (1, 2):
        busy.turns = 5
        began = busy.now
        while len(rests.at) < stretch:
            loop.turn()
        assert rests.at[-1] >= began + 5 * busy.wait_s + loops.IDLE_S
    assert rests.patience == [-1, -1]


def test_who_rested_for_nothing_rests_again(busy: _Busy) -> None:
    loop, rests = _loop(busy), _Rests(busy)
    loop.at_rest(rests)
    for _ in range(6):
        loop.turn()
    assert len(rests.at) == 3
    assert min(later - before for before, later in zip(rests.at, rests.at[1:], strict=False)) >= loops.IDLE_S


def test_there_is_no_rest_while_a_job_runs(busy: _Busy) -> None:
    loop, rests = _loop(busy), _Rests(busy)
    loop.at_rest(rests)
    busy.turns = 1
    busy.late_s = 0.5

    def work() -> Iterator[bool]:
        for _ in range(3):
            yield True

    loops.Job(loop, work())
    for _ in range(4):
        busy.late_s = 0.5
        loop.turn()
        assert rests.at == []
    while not rests.at:
        loop.turn()


@pytest.mark.parametrize("seconds", [0.1, 0.3, 5, 59.5])
def test_a_timer_comes_in_its_time_before_and_during_a_rest(busy: _Busy, seconds: float) -> None:
    loop, rung, rests = _loop(busy), [], _Rests(busy)
    loop.at_rest(rests)
    busy.turns = 1
    loop.turn()
    began = busy.now
    loop.after(seconds, lambda: rung.append(busy.now - began))
    for _ in range(6):
        loop.turn()
    assert rung == [pytest.approx(seconds)]


def test_a_freeze_during_a_rest_takes_nothing_from_a_timer(busy: _Busy) -> None:
    loop, rung = _loop(busy), []
    loop.at_rest(_Rests(busy, freeze_s=3600))
    began = busy.now
    loop.after(60, lambda: rung.append(busy.now - began))
    loop.after(30, lambda: None)
    while not rung:
        loop.turn()
    assert rung == [pytest.approx(3660)]


def test_a_rest_that_fails_is_tried_again_only_after_something_happened(busy: _Busy) -> None:
    loop, rests = _loop(busy), _Rests(busy, fails=True)
    loop.at_rest(rests)
    for stretch in (1, 2):
        for _ in range(5):
            loop.turn()
        assert len(rests.at) == stretch
        assert busy.waits[-1] == -1
        busy.turns = 1


def test_a_loop_that_nobody_told_what_to_do_at_rest_waits_for_good(busy: _Busy) -> None:
    loop = _loop(busy)
    busy.turns = 1
    loop.turn()
    assert loop._patience(loop._due()) == -1
