"""The logs of builds: how much of one is kept."""

from __future__ import annotations

from datetime import UTC, datetime

from firkin.engine.build_logs import MOST_BYTES, MOST_ENTRIES, BuildLog
from firkin.law.build_steps import BuildLine
from firkin.law.builds import BuildEntry

NOW = datetime(2030, 1, 1, tzinfo=UTC)


def said(text: str, step: str = "1") -> BuildEntry:
    return BuildEntry(NOW, BuildLine(message=text, step=step))


def size(log: BuildLog) -> int:
    return sum(len(entry.line.message.encode()) for entry in log.entries)


def test_a_log_keeps_its_first_lines_up_to_a_size_says_so_once_and_has_its_end() -> None:
    log = BuildLog()
    for number in range(MOST_ENTRIES):
        log.hear(said(f"{number} " + "ü" * 1000))
    log.hear(said("told in vain", "2"))
    log.hear(said("failed at last", "2"), last=True)
    assert log.entries[0].line.message.startswith("0 ü")
    full, last = log.entries[-2:]
    assert full.line.message.startswith("the log is full (2 MiB or 20000 lines)")
    assert last == said("failed at last", "2")
    assert MOST_BYTES // 2 < size(log) < MOST_BYTES + 1000
    assert log.step == "2"


def test_a_log_of_short_lines_ends_after_so_many() -> None:
    log = BuildLog()
    for _ in range(MOST_ENTRIES + 10):
        log.hear(said("x"))
    assert len(log.entries) == MOST_ENTRIES + 1


def test_a_line_that_never_ends_is_cut() -> None:
    log = BuildLog()
    log.hear(said("x" * MOST_BYTES))
    assert len(log.entries[0].line.message) < 5000
    log.hear(said("y" * MOST_BYTES), last=True)
    assert size(log) < 10_000
