"""A terminal's line discipline: echo, line editing and the keys that mean signals."""

from __future__ import annotations

from firkin.drivers.memory.pipes import Pipe
from firkin.drivers.memory.processes import INTERRUPT, TERMINAL, Output, Process

_INTERRUPT, _END, _ERASE = 0x03, 0x04, 0x7F


class Terminal:
    """What is typed at a process with a terminal."""

    def __init__(self, process: Process, output: Output, keyboard: Pipe) -> None:
        self._process = process
        self._output = output
        self._keyboard = keyboard
        self._line = bytearray()

    async def type(self, data: bytes) -> None:
        for key in data.replace(b"\r", b"\n"):
            if key == _INTERRUPT:
                await self._interrupt()
            elif key == _END:
                await self._end_of_input()
            elif key == _ERASE:
                await self._erase()
            else:
                await self._letter(key)

    async def _letter(self, key: int) -> None:
        self._line.append(key)
        await self._echo(b"\r\n" if key == 0x0A else bytes([key]))
        if key == 0x0A:
            await self._send()

    async def _interrupt(self) -> None:
        self._line.clear()
        await self._echo(b"^C")
        self._process.signal(INTERRUPT)

    async def _end_of_input(self) -> None:
        if self._line:
            await self._send()
        else:
            self._keyboard.end()

    async def _erase(self) -> None:
        if self._line:
            self._line.pop()
            await self._echo(b"\b \b")

    async def _send(self) -> None:
        line, self._line = bytes(self._line), bytearray()
        await self._keyboard.write(line)

    async def _echo(self, data: bytes) -> None:
        await self._output.write(TERMINAL, data)
