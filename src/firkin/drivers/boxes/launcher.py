"""The launcher of boxes, as the server sees it, and what a launched process says of itself."""

from __future__ import annotations

import asyncio
import errno
import json
import os
from typing import Any

from firkin.drivers.boxes.orders import VOLUMES, Failure, LaunchOrder
from firkin.drivers.ground.helper_process import HelperDied
from firkin.drivers.ground.launch_helper import Launched, LaunchHelper
from firkin.law.errors import (
    BackendFailure,
    FirkinError,
    HostDiskFull,
    InvalidReason,
    InvalidSpec,
    RetryClass,
)
from firkin.phases import current

_DISK = "disk"
_UNFIT = (errno.ENOTDIR, errno.ELOOP, errno.EROFS, errno.EACCES, errno.ENAMETOOLONG, errno.ENOENT)  # as mount points


class LaunchFailed(BackendFailure):
    """The sandbox's process could not be set up; `step` and `errno` say where."""

    code = "launch_failed"

    def __init__(self, step: str, code: int, text: str) -> None:
        super().__init__("create sandbox", "launcher", f"step {step!r}: {text}", retry=RetryClass.UNKNOWN)
        self.step = step
        self.errno = code


class Launcher(LaunchHelper):
    """The launcher of boxes: it runs `module`."""

    def __init__(self, module: str, setup: dict[str, Any]) -> None:
        super().__init__(module, setup, lambda answer: _explained(Failure(*answer["failure"])))

    async def fork(self, order: LaunchOrder, fds: list[int]) -> Launched:
        """Ask for one sandbox; returns when its first process is there. `HelperDied` when the launcher died meanwhile,
        and what `read_report` raises when the process could not be made."""
        return await self.launch(order.sandbox_id, order.encode(), fds)


async def read_report(report: int, *, forked: bool = True) -> None:
    """Wait for the launched process to say that it is the agent. Raises `LaunchFailed`, with the step, otherwise.

    Of one that waited, and was not `forked` for this, a sudden end is `HelperDied`: another may do as well.
    """
    await _readable(report)
    try:
        said = os.read(report, 65536)
    except ConnectionResetError:  # of a socket: with what was said to it unread
        said = b""
    if not said and not forked:
        raise HelperDied("a box made ahead")
    if not said:
        raise LaunchFailed("start", 0, "the process ended before it became the agent")
    if said[:1] != b"+":
        raise _explained(Failure.decode(said))
    trace = current()
    if trace is not None and len(said) > 1:
        trace.told([(name, at) for name, at in json.loads(said[1:])])


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
