"""Answers of helper processes that do not come as they should: of processes that are not real, over real sockets."""

from __future__ import annotations

import array
import asyncio
import json
import os
import resource
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import pytest

from firkin.drivers.ground.helper_process import HelperDied, HelperProcess
from firkin.drivers.ground.launch_helper import LaunchHelper
from firkin.drivers.ground.leases import SlotLeases
from firkin.drivers.ground.slots import SlotPool
from firkin.engine.substrate import substrate
from firkin.host.wires import Wires
from firkin.law.errors import BackendFailure, CapacityRejected


class FakeProcess(HelperProcess):
    """The test is at the other end of its socket; a new one is there after each start."""

    def __init__(self) -> None:
        super().__init__("a.test")
        self.theirs: socket.socket
        self.starts = 0

    async def start(self, *, first: bytes = b"", within_s: float = 15.0) -> None:
        self.starts += 1
        self._socket, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.setblocking(False)

    def answer(self, text: bytes, *fds: int) -> None:
        self.theirs.sendmsg([text], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else [])


class FakeLauncher(LaunchHelper):
    def __init__(self) -> None:
        super().__init__("a.test", {}, lambda answer: ValueError(answer["failure"]))
        self.process = FakeProcess()
        self._helper = self.process

    async def asked(self, name: str) -> asyncio.Task[object]:
        """A launch whose order the launcher has."""
        task: asyncio.Task[object] = asyncio.create_task(self.launch(name, b"order", []))
        await asyncio.get_running_loop().run_in_executor(None, self.process.theirs.recv, 100)
        return task


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    """Until the block ends this process gets no descriptor: the limit is what it has."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open("/dev/null", os.O_RDONLY)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


async def test_a_process_whose_handle_found_no_descriptor_is_ended_and_its_launch_fails() -> None:
    launcher = FakeLauncher()
    await launcher.start()
    child = await asyncio.to_thread(subprocess.Popen, ["sleep", "60"])
    try:
        launching = await launcher.asked("one")
        handle = os.pidfd_open(child.pid)
        launcher.process.answer(json.dumps({"id": "one", "pid": child.pid}).encode(), handle)
        with no_descriptor_left(), pytest.raises(OSError, match="Too many open files"):
            await asyncio.wait_for(launching, 5)
        os.close(handle)
        assert await asyncio.to_thread(child.wait, 5) == -signal.SIGKILL
    finally:
        child.kill()
        await asyncio.to_thread(child.wait)

    again = await launcher.asked("two")
    null = os.open("/dev/null", os.O_RDONLY)
    launcher.process.answer(b'{"id": "two", "pid": 7}', null)
    os.close(null)
    launched = await asyncio.wait_for(again, 5)
    os.close(launched.pidfd)  # type: ignore[attr-defined]  # a `Launched`
    assert launcher.process.starts == 1
    await launcher.aclose()
    launcher.process.theirs.close()


async def test_a_launcher_that_answers_nonsense_is_replaced(caplog: pytest.LogCaptureFixture) -> None:
    launcher = FakeLauncher()
    await launcher.start()
    launching, before = await launcher.asked("one"), launcher.process.theirs
    launcher.process.answer(b"[]")
    with pytest.raises(HelperDied):
        await asyncio.wait_for(launching, 5)
    before.close()
    assert "makes no sense" in caplog.text

    async with asyncio.timeout(5):
        await launcher._up.wait()
    again = await launcher.asked("two")
    launcher.process.answer(b'{"id": "two", "failure": "no"}')
    with pytest.raises(ValueError, match="no"):
        await asyncio.wait_for(again, 5)
    assert launcher.process.starts == 2
    await launcher.aclose()
    launcher.process.theirs.close()


async def test_descriptors_that_came_without_the_others_are_closed() -> None:
    process = FakeProcess()
    await process.start()
    null = os.open("/dev/null", os.O_RDONLY)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    first = os.dup(null)
    os.close(first)
    process.answer(b"three", null, null, null)
    resource.setrlimit(resource.RLIMIT_NOFILE, (first + 1, limits[1]))
    try:
        assert await process.receive() == (b"three", [])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    again = os.dup(null)
    assert again == first
    for fd in (null, again):
        os.close(fd)
    process.theirs.close()
    await process.aclose()


class RefusingMaker(FakeProcess):
    """Its slots come without descriptors, and another process is not to be had."""

    def __init__(self) -> None:
        super().__init__()
        self.refused_twice = asyncio.Event()

    async def send(self, message: bytes, fds: list[int]) -> None:
        self.answer(json.dumps({"slot": json.loads(message)["slot"], "loop": [7, 1]}).encode())

    async def start(self, *, first: bytes = b"", within_s: float = 15.0) -> None:
        if self.starts:
            self.starts += 1
            if self.starts > 2:
                self.refused_twice.set()
            raise OSError(24, "Too many open files")
        await super().start()


@pytest.mark.thorough
async def test_slots_without_their_descriptors_are_refused_and_made_again_later(tmp_path: Path) -> None:
    pool = SlotPool(SlotLeases("a test", lambda _: False, tmp_path), cast(Wires, None), depth=1)
    pool._maker = maker = RefusingMaker()
    await pool.start(set())
    with pytest.raises(CapacityRejected, match="open files of the server"):
        async with substrate("create sandbox", "a test", within_s=5):
            await pool.take(online=True)
    async with asyncio.timeout(5):
        await maker.refused_twice.wait()  # it goes on asking
    assert not pool._used
    await pool.aclose()
    maker.theirs.close()


async def test_a_driver_that_gets_no_descriptor_has_no_room_now() -> None:
    for error in (OSError(23, "in the whole machine"), OSError(24, "in this process")):
        with pytest.raises(CapacityRejected, match="not enough open files of the server"):
            async with substrate("create sandbox", "a test", within_s=5):
                raise error
        with pytest.raises(CapacityRejected):
            async with substrate("create sandbox", "a test", within_s=5):
                raise BackendFailure("create sandbox", "a test", "no") from error
    with pytest.raises(BackendFailure):
        async with substrate("create sandbox", "a test", within_s=5):
            raise OSError(5, "something else")
