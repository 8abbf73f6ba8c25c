"""The server's end of the microVM launcher: an order out, a process handle in."""

from __future__ import annotations

import asyncio
import json
import os
from contextlib import suppress
from typing import Any

from firkin.drivers.ground.helper_process import HelperDied, HelperProcess
from firkin.law.errors import BackendFailure, RetryClass
from firkin.lifetimes import Children

_SPAWNER = "firkin.drivers.qemu.spawner"
_NAME = "qemu"
_WITHIN_S = 20.0


class Launcher:
    """Sends orders to the current launcher process. A dead one is replaced at once."""

    def __init__(self, setup: dict[str, Any]) -> None:
        self._setup = json.dumps(setup).encode()
        self._helper = HelperProcess(_SPAWNER)
        self._pending: dict[str, asyncio.Future[tuple[int, int]]] = {}
        self._tasks = Children()
        self._up = asyncio.Event()

    @property
    def pid(self) -> int | None:
        return self._helper.pid

    async def start(self) -> None:
        await self._helper.start(first=self._setup)
        self._up.set()
        self._tasks.start(self._read_answers(), name="microVM launcher")

    async def aclose(self) -> None:
        with suppress(HelperDied, BackendFailure):
            await self._tasks.aclose()
        await self._helper.aclose()

    async def launch(self, order: dict[str, Any], fds: list[int]) -> tuple[int, int]:
        """The process id and a descriptor that stands for it. `HelperDied`; `BackendFailure` with the step."""
        async with asyncio.timeout(_WITHIN_S):
            await self._up.wait()
        name = str(order["id"])
        answer: asyncio.Future[tuple[int, int]] = asyncio.get_running_loop().create_future()
        self._pending[name] = answer
        try:
            await self._helper.send(json.dumps(order).encode(), fds)
            async with asyncio.timeout(_WITHIN_S):
                return await asyncio.shield(answer)
        except (asyncio.CancelledError, TimeoutError):
            answer.add_done_callback(_end_at_once)
            raise
        finally:
            if answer.done():
                self._pending.pop(name, None)

    async def _read_answers(self) -> None:
        while True:
            try:
                message, fds = await self._helper.receive()
            except HelperDied:
                self._up.clear()
                pending, self._pending = self._pending, {}
                for waiting in pending.values():
                    if not waiting.done():
                        waiting.set_exception(HelperDied(_SPAWNER))
                await self._revive()
                continue
            self._deliver(json.loads(message), fds)

    async def _revive(self) -> None:
        """Start the next one; a host that refuses is asked again with growing patience."""
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
        waiting = self._pending.pop(answer["id"], None)
        if waiting is None or waiting.done():
            for fd in fds:
                os.close(fd)
        elif "error" in answer:
            detail = str(answer["error"])
            waiting.set_exception(BackendFailure("start a machine", _NAME, detail, retry=RetryClass.UNKNOWN))
        else:
            waiting.set_result((answer["pid"], fds[0]))


def _end_at_once(answer: asyncio.Future[tuple[int, int]]) -> None:
    """Nobody waits for it any more: what was launched is ended by whoever undoes the boot, by its control group."""
    if not answer.cancelled() and answer.exception() is None:
        os.close(answer.result()[1])
