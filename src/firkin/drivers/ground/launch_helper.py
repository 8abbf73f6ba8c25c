"""The server's end of a launcher process: orders out, process handles in, and a new launcher when one is killed."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from firkin.drivers.ground.helper_process import HelperDied, HelperProcess
from firkin.law.errors import BackendFailure
from firkin.lifetimes import Children, finish

_UP_WITHIN_S = 20.0
_log = logging.getLogger("firkin.launcher")


class Launched:
    """A process that was launched: its id and a descriptor that stands for it."""

    __slots__ = ("pid", "pidfd")

    def __init__(self, pid: int, pidfd: int) -> None:
        self.pid = pid
        self.pidfd = pidfd


class LaunchHelper:
    """Sends orders to the current launcher process, which runs `module`. A dead one is replaced at once.

    An answer has the order's ``id`` and a ``pid``; of any other, `failure` makes the error.
    """

    def __init__(self, module: str, setup: dict[str, Any], failure: Callable[[dict[str, Any]], Exception]) -> None:
        self._setup = json.dumps(setup).encode()
        self._module = module
        self._failure = failure
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

    async def launch(self, name: str, order: bytes, fds: list[int]) -> Launched:
        """Ask for one process. `HelperDied` when the launcher died meanwhile, and what `failure` made."""
        async with asyncio.timeout(_UP_WITHIN_S):
            await self._up.wait()
        answer: asyncio.Future[Launched] = asyncio.get_running_loop().create_future()
        self._pending[name] = answer
        try:
            await self._helper.send(order, fds)
            return await answer
        except (asyncio.CancelledError, TimeoutError):
            if answer.done() and not answer.cancelled() and answer.exception() is None:
                os.close(answer.result().pidfd)
            raise
        finally:
            self._pending.pop(name, None)

    async def launch_to_its_end(self, name: str, order: bytes, fds: list[int]) -> Launched:
        """As `launch`; whoever is cancelled waits for the answer: an undo that ran ahead would leave what it undoes."""
        launching = asyncio.get_running_loop().create_task(self.launch(name, order, fds))
        try:
            return await asyncio.shield(launching)
        except asyncio.CancelledError:
            await finish(_settled(launching), within_s=_UP_WITHIN_S)
            if not launching.cancelled() and launching.exception() is None:
                os.close(launching.result().pidfd)
            raise

    async def _read_answers(self) -> None:
        """For as long as this is in use: whatever goes wrong costs those who wait their answers, and nobody later."""
        while True:
            try:
                self._deliver(*await self._helper.receive())
            except Exception as error:  # noqa: BLE001 — the root of a task, without which there is no launcher any more
                if not isinstance(error, HelperDied):
                    _log.exception(
                        "an answer of the launcher makes no sense, so it is replaced module=%s", self._module
                    )
                self._up.clear()
                for waiting in self._pending.values():
                    if not waiting.done():
                        waiting.set_exception(HelperDied(self._module))
                await self._revive()

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

    def _deliver(self, message: bytes, fds: list[int]) -> None:
        answer: dict[str, Any] = json.loads(message)
        waiting = self._pending.get(answer["id"])
        if "pid" in answer and not fds:  # there was no descriptor left to take it with, and without it nobody holds it
            with suppress(ProcessLookupError):
                os.kill(answer["pid"], signal.SIGKILL)
            if waiting is not None and not waiting.done():
                waiting.set_exception(OSError(errno.EMFILE, os.strerror(errno.EMFILE)))
        elif waiting is None or waiting.done():  # its caller gave up, and whoever undoes what it began ends the process
            for fd in fds:
                os.close(fd)
        elif "pid" in answer:
            waiting.set_result(Launched(answer["pid"], fds[0]))
        else:
            waiting.set_exception(self._failure(answer))


async def _settled(launching: asyncio.Task[Launched]) -> None:
    await asyncio.wait({launching})
