"""Work in a thread, and those who do not wait for it any more."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from firkin.host import host_root
from firkin.host.host_root import build_host_root
from firkin.host.stoppable import Stopped, in_thread
from firkin.testing.virtual_clock import settle


async def test_a_cancelled_caller_is_held_until_the_work_has_stopped() -> None:
    begun, ended = threading.Event(), threading.Event()

    def work(stopped: Stopped) -> None:
        begun.set()
        while not stopped():
            pass
        ended.set()
        raise InterruptedError

    waiting = asyncio.create_task(in_thread(work))
    assert await asyncio.to_thread(begun.wait, 10)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert ended.is_set()


async def test_the_result_and_the_failure_of_the_work_are_the_callers() -> None:
    assert await in_thread(lambda _: 7) == 7
    with pytest.raises(LookupError):
        await in_thread(lambda _: {}["nothing"])


async def test_nobody_writes_into_a_host_root_that_was_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, may_go_on = threading.Event(), threading.Event()

    def slow_show(*_: object) -> dict[str, str]:
        begun.set()
        may_go_on.wait(10)
        return {}

    monkeypatch.setattr(host_root, "_show_system_folders", slow_show)
    making = asyncio.create_task(build_host_root(tmp_path))
    assert await asyncio.to_thread(begun.wait, 10)
    making.cancel()
    await settle()
    assert not making.done()
    may_go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await making
    assert not (tmp_path / "etc/passwd").exists()
