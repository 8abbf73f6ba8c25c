"""What the system has to say about a sandbox, kept for the asking."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum, StrEnum

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
    """`since` is inclusive; `limit` keeps the newest so many. Entries come oldest first."""

    sandbox_id: SandboxId | None = None
    source: LogSource | None = None
    level: LogLevel = LogLevel.TRACE
    since: datetime | None = None
    limit: int = 1000
