"""What signals do to a command that is attached to this terminal."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator

import pytest

from firkin.cli import attachment
from firkin.cli.attachment import ExitCode, Output, attach
from firkin.law.processes import PtySize


class Stubborn:
    """Takes an interrupt for nothing. `heirs`: what it has started outlives it and holds its output."""

    def __init__(self, *, heirs: bool) -> None:
        self.got: list[int] = []
        self._heirs = heirs
        self._killed = asyncio.Event()

    async def events(self) -> AsyncIterator[Output | ExitCode]:
        os.kill(os.getpid(), signal.SIGINT)
        await self._killed.wait()
        if self._heirs:
            await asyncio.sleep(60)
        yield ExitCode(128 + signal.SIGKILL)

    async def signal(self, number: int) -> None:
        self.got.append(number)
        if number == signal.SIGKILL:
            self._killed.set()
        else:
            os.kill(os.getpid(), signal.SIGINT)

    async def send_input(self, data: bytes) -> None: ...

    async def close_stdin(self) -> None: ...

    async def resize(self, size: PtySize) -> None: ...


@pytest.mark.parametrize("heirs", [False, True])
async def test_the_second_interrupt_ends_the_command_whoever_else_holds_its_output(
    monkeypatch: pytest.MonkeyPatch, heirs: bool
) -> None:
    monkeypatch.setattr(attachment, "_LAST_WORDS_S", 0.05)
    process = Stubborn(heirs=heirs)
    async with asyncio.timeout(10):
        assert await attach(process, tty_wanted=False, show=lambda descriptor, data: None) == 137
    assert process.got == [signal.SIGINT, signal.SIGKILL]
