"""The server's end of the launcher: orders out, process handles in, and a new launcher when one is killed."""

from __future__ import annotations

import asyncio
import errno
import json
import os
from contextlib import suppress
from typing import Any

from firkin.drivers.boxes.orders import VOLUMES, Failure, LaunchOrder
from firkin.drivers.ground.helper_process import HelperDied, HelperProcess
from firkin.law.errors import (
    BackendFailure,
    FirkinError,
    HostDiskFull,
    InvalidReason,
    InvalidSpec,
    RetryClass,
)
from firkin.lifetimes import Children

_DISK = "disk"
_UNFIT = (errno.ENOTDIR, errno.ELOOP, errno.EROFS, errno.EACCES, errno.ENAMETOOLONG, errno.ENOENT)  # as mount points


class LaunchFailed(BackendFailure):
    """The sandbox's process could not be set up; `step` and `errno` say where."""

    code = "launch_failed"

    def __init__(self, step: str, code: int, text: str) -> None:
        super().__init__("create sandbox", "launcher", f"step {step!r}: {text}", retry=RetryClass.UNKNOWN)
        self.step = step
        self.errno = code


class Launched:
    """A process that has become an agent: its id and a descriptor that stands for it."""

    __slots__ = ("pid", "pidfd")

    def __init__(self, pid: int, pidfd: int) -> None:
        self.pid = pid
        self.pidfd = pidfd


class Launcher:
    """Sends orders to the current launcher process, which runs `module`. A dead one is replaced at once."""

    def __init__(self, module: str, setup: dict[str, Any]) -> None:
        self._setup = json.dumps(setup).encode()
        self._module = module
        self._helper = HelperProcess(module)
        self._pending: dict[str, asyncio.Future[Launched]] = {}
        self._tasks = Children()
        self._up = asyncio.Event()

    @property
    def pid(self) -> int | None:
        return self._helper.pid

    async def start(self) -> None:
        await self._helper.start(first=self._setup)
        self._up.set()
        self._tasks.start(self._read_answers(), name="launcher")

    async def aclose(self) -> None:
        with suppress(HelperDied, BackendFailure):
            await self._tasks.aclose()
        await self._helper.aclose()

    async def fork(self, order: LaunchOrder, fds: list[int]) -> Launched:
        """Ask for one sandbox; returns when its first process is there. `HelperDied` when the launcher died meanwhile,
        and what `read_report` raises when the process could not be made."""
        async with asyncio.timeout(20):
            await self._up.wait()
        answer: asyncio.Future[Launched] = asyncio.get_running_loop().create_future()
        self._pending[order.sandbox_id] = answer
        try:
            await self._helper.send(order.encode(), fds)
            return await answer
        except (asyncio.CancelledError, TimeoutError):
            if answer.done() and not answer.cancelled() and answer.exception() is None:
                os.close(answer.result().pidfd)
            raise
        finally:
            self._pending.pop(order.sandbox_id, None)

    async def _read_answers(self) -> None:
        while True:
            try:
                message, fds = await self._helper.receive()
            except HelperDied:
                self._up.clear()
                for waiting in self._pending.values():
                    if not waiting.done():
                        waiting.set_exception(HelperDied(self._module))
                await self._revive()
                continue
            self._deliver(json.loads(message), fds)

    async def _revive(self) -> None:
        """Start the next one; a host that refuses (out of memory, say) is asked again with growing patience."""
        patience_s = 0.05
        while True:
            await self._helper.aclose()
            try:
                await self._helper.start(first=self._setup)
            except (BackendFailure, OSError):
                await asyncio.sleep(patience_s)
                patience_s = min(2 * patience_s, 5.0)
                continue
            self._up.set()
            return

    def _deliver(self, answer: dict[str, Any], fds: list[int]) -> None:
        waiting = self._pending.get(answer["id"])
        if waiting is None or waiting.done():  # its caller gave up; the report pipe is closed, so it ends itself
            for fd in fds:
                os.close(fd)
        elif "failure" in answer:
            waiting.set_exception(_explained(Failure(*answer["failure"])))
        else:
            waiting.set_result(Launched(answer["pid"], fds[0]))


async def read_report(report: int) -> None:
    """Wait for the launched process to say that it is the agent. Raises `LaunchFailed`, with the step, otherwise."""
    await _readable(report)
    said = os.read(report, 65536)
    if not said:
        raise LaunchFailed("start", 0, "the process ended before it became the agent")
    if said != b"+":
        raise _explained(Failure.decode(said))


def _explained(failure: Failure) -> FirkinError:
    if failure.step == VOLUMES and failure.code in _UNFIT:
        detail = f"a volume cannot be mounted there: {failure.text.partition('] ')[2] or failure.text}"
        return InvalidSpec("create sandbox", InvalidReason.INVALID_PATH, detail)
    if failure.step == _DISK and failure.code in (errno.ENOSPC, errno.EDQUOT):
        return HostDiskFull("create sandbox")
    return LaunchFailed(failure.step, failure.code, failure.text)


async def settled(report: int) -> None:
    """Wait until a launch that is to be undone can make nothing new any more.

    Whoever sets up a sandbox holds the other end of the pipe, so it is over when
    the pipe says anything: ready, failed, or closed because everybody is dead.
    Without this wait, an undo would run ahead of the set-up that it undoes.
    """
    await _readable(report)


async def _readable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    readable = loop.create_future()

    def wake() -> None:
        if not readable.done():
            readable.set_result(None)

    loop.add_reader(fd, wake)
    try:
        await readable
    finally:
        loop.remove_reader(fd)
