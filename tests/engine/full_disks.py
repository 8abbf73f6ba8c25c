"""A disk that is full for the state database until there is room again."""

from __future__ import annotations

import functools
import sqlite3
from typing import Any

import pytest


class Disk:
    """While it is `full`, a transaction that changed anything fails at its commit, as SQLite's do."""

    def __init__(self) -> None:
        self.full = False


class _Connection(sqlite3.Connection):
    disk: Disk
    began_at = 0

    def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
        if sql == "BEGIN":
            self.began_at = self.total_changes
        if sql == "COMMIT" and self.disk.full and self.total_changes != self.began_at:
            super().execute("ROLLBACK")
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorcode = sqlite3.SQLITE_FULL
            raise error
        return super().execute(sql, *args)


def a_disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    """The disk below every state database that is opened from here on."""
    disk = Disk()
    kind = type("OnDisk", (_Connection,), {"disk": disk})
    monkeypatch.setattr("firkin.engine.database.sqlite3.connect", functools.partial(sqlite3.connect, factory=kind))
    return disk
