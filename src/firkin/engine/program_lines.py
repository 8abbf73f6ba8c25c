"""A program's output as lines for people. What a guest writes is hostile: a line is cut, control characters go."""

from __future__ import annotations

import codecs
import signal as signals
from collections.abc import Callable

from firkin.law.logs import LogLevel
from firkin.law.processes import CommandStatus, Ended, Exited, ProcessStream, PtyOutput, Stderr, Stdout

MOST_OF_A_LINE = 2000
Tell = Callable[[str, LogLevel], None]


class _Lines:
    """One stream, cut at line ends; a carriage return begins a line anew, as on a terminal."""

    def __init__(self, tell: Tell, level: LogLevel) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._tell = tell
        self._level = level
        self._pending = ""

    def feed(self, data: bytes, *, final: bool = False) -> None:
        text = self._pending + self._decoder.decode(data, final)
        *lines, self._pending = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        if final or len(self._pending) > MOST_OF_A_LINE:
            lines, self._pending = [*lines, self._pending], ""
        for line in lines:
            shown = "".join(letter if letter.isprintable() or letter == "\t" else " " for letter in line)
            if shown.strip():
                self._tell(shown[:MOST_OF_A_LINE].rstrip(), self._level)


async def told(stream: ProcessStream, tell: Tell) -> CommandStatus:
    """Tell each line of the output, errors as warnings, and return how the program ended."""
    out, err = _Lines(tell, LogLevel.INFO), _Lines(tell, LogLevel.WARN)
    status: CommandStatus = Exited(0)
    try:
        async for event in stream:
            match event:
                case Stdout(data) | PtyOutput(data):
                    out.feed(data)
                case Stderr(data):
                    err.feed(data)
                case Ended(ended):
                    status = ended
    finally:
        await stream.aclose()
    out.feed(b"", final=True)
    err.feed(b"", final=True)
    return status


def described(status: CommandStatus) -> str:
    """``exit status 1``, ``signal SIGKILL``."""
    if isinstance(status, Exited):
        return f"exit status {status.code}"
    try:
        return f"signal {signals.Signals(status.signal).name}"
    except ValueError:  # a real-time signal
        return f"signal {status.signal}"
