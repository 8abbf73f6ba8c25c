"""What a build said, as much of it as is kept: a program in a step decides how much it says."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from firkin.law.build_steps import BASE_STEP, BuildLine
from firkin.law.builds import BuildEntry
from firkin.law.logs import LogLevel

MOST_BYTES = 2 << 20
MOST_ENTRIES = 20_000
_MOST_OF_A_LINE = 4_000  # a step's title holds its whole command
_ITS_END = 1_000  # there a failure says why
_BESIDE_TEXT = 64  # what the rest of an entry takes where it is stored
_FULL = (
    f"the log is full ({MOST_BYTES >> 20} MiB or {MOST_ENTRIES} lines): what the build says from here on is not kept"
)


@dataclass(slots=True, eq=False)
class BuildLog:
    """The first lines. `step` is the one that the last line was about, kept or not."""

    entries: list[BuildEntry] = field(default_factory=list)
    step: str = BASE_STEP
    _left: int = MOST_BYTES
    _full: bool = False

    def hear(self, entry: BuildEntry, *, last: bool = False) -> None:
        """The `last` one, which says how the build ended, is kept in any case."""
        entry = replace(entry, line=replace(entry.line, message=shortened(entry.line.message)))
        self.step = entry.line.step
        if self._full and not last:
            return
        self._left -= len(entry.line.message.encode(errors="replace")) + _BESIDE_TEXT
        if not last and (self._left < 0 or len(self.entries) >= MOST_ENTRIES):
            self._full = True
            entry = replace(entry, line=BuildLine(message=_FULL, level=LogLevel.WARN, step=entry.line.step))
        self.entries.append(entry)


def shortened(text: str) -> str:
    if len(text) <= _MOST_OF_A_LINE:
        return text
    return f"{text[: _MOST_OF_A_LINE - _ITS_END]} … {text[-_ITS_END:]}"
