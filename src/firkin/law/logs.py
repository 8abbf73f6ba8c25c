"""What the system has to say about a sandbox, kept for the asking."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum, StrEnum
from typing import Protocol

from firkin.law.ids import SandboxId


class LogSource(StrEnum):
    RUNTIME = "runtime"
    BOOT = "boot"
    PROCESS = "process"
    FILESYSTEM = "filesystem"
    BACKEND = "backend"


class LogLevel(IntEnum):
    TRACE = 0
    DEBUG = 10
    INFO = 20
    WARN = 30
    ERROR = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEntry:
    sandbox_id: SandboxId | None
    source: LogSource
    level: LogLevel
    message: str
    observed_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class LogFilter:
    """All given fields must match. `since` is inclusive; entries come oldest first.

    `limit` keeps the newest so many: of a list, or of what a stream's reader has not read yet.
    """

    sandbox_id: SandboxId | None = None
    source: LogSource | None = None
    level: LogLevel = LogLevel.TRACE
    since: datetime | None = None
    limit: int = 1000

    def matches(self, entry: LogEntry) -> bool:
        """Whether `entry` is wanted, `limit` apart."""
        return (
            entry.level >= self.level
            and (self.sandbox_id is None or entry.sandbox_id == self.sandbox_id)
            and (self.source is None or entry.source == self.source)
            and (self.since is None or entry.observed_at >= self.since)
        )


class LogStream(Protocol):
    """New entries as they are written, until `aclose` or the end of the backend."""

    def __aiter__(self) -> AsyncIterator[LogEntry]: ...

    async def __anext__(self) -> LogEntry: ...

    async def aclose(self) -> None: ...
