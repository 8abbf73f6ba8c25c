"""How the state database commits what waits together, and what it does while the disk takes nothing.

What has happened anyway cannot be refused: such a job is kept in memory, in its
order, and is written before anything that comes after it. Until then everybody
who reads meets the database as it will be, but for rows that are known by their
number: a number that was told must never be given to another row, and what is
only in memory may die with the process.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar  # Any: the results of jobs of every type share one queue

from firkin.law.errors import FirkinError, HostDiskFull, IoFailure

T = TypeVar("T")
Job = Callable[[sqlite3.Connection], T]
Answer = tuple[Any, Exception | None]

MOST_KEPT = 8192  # a few KB each; with the disk full nothing is created, so there are few ends to each sandbox
_REFUSALS = frozenset(
    {
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
    }
)
_log = logging.getLogger("firkin.engine")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """`kept`: its result is whether it is committed yet. `numbered`: it reads only what is committed."""

    job: Job[Any]
    future: asyncio.Future[Any]
    kept: bool = False
    numbered: bool = False


class Writer:
    """Of one thread, with its connection."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._kept: deque[Job[object]] = deque()

    @property
    def kept(self) -> int:
        """How many jobs wait for the disk."""
        return len(self._kept)

    def work_off(self, requests: Sequence[Request]) -> list[Answer]:
        """One transaction, behind what was kept. Where it fails those that only read are answered all the same."""
        try:
            return self._commit(requests)
        except sqlite3.Error as error:
            self._roll_back()
            return self._without_writing(requests, disk_failure(error))

    def _commit(self, requests: Sequence[Request]) -> list[Answer]:
        self._connection.execute("BEGIN")
        self._replay()
        answers = [_answer(self._connection, request.job) for request in requests]
        self._connection.execute("COMMIT")
        if self._kept:
            _log.warning("the state database takes writes again; written late changes=%d", len(self._kept))
            self._kept.clear()
        return [
            (True, None) if request.kept and error is None else (result, error)
            for request, (result, error) in zip(requests, answers, strict=True)
        ]

    def _without_writing(self, requests: Sequence[Request], failure: FirkinError) -> list[Answer]:
        answers = {n: self._keep(request.job, failure) for n, request in enumerate(requests) if request.kept}
        try:
            self._connection.execute("BEGIN")
            for numbered in (True, False):
                if not numbered:
                    self._replay()
                for n, request in enumerate(requests):
                    if n not in answers and request.numbered is numbered:
                        answers[n] = self._look(request.job, failure)
        except sqlite3.Error as error:
            failure = disk_failure(error)
        self._roll_back()
        return [answers.get(n, (None, failure)) for n in range(len(requests))]

    def _keep(self, job: Job[object], failure: FirkinError) -> Answer:
        if len(self._kept) >= MOST_KEPT:
            return None, failure
        if not self._kept:
            _log.error(
                "the state database takes no writes, what ends is told in memory until it does error=%s", failure
            )
        self._kept.append(job)
        return False, None

    def _replay(self) -> None:
        for job in self._kept:
            _answer(self._connection, job)

    def _look(self, job: Job[object], failure: FirkinError) -> Answer:
        """The answer of a job that changes nothing; the failure for any other."""
        changes = self._connection.total_changes
        self._connection.execute("SAVEPOINT look")
        result, error = _answer(self._connection, job)
        self._connection.execute("ROLLBACK TO look")
        self._connection.execute("RELEASE look")
        if error is None and self._connection.total_changes != changes:
            return None, failure
        return result, error

    def _roll_back(self) -> None:
        with suppress(sqlite3.Error):
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")


def _answer(connection: sqlite3.Connection, job: Job[Any]) -> Answer:
    """The job's result or its own failure. Raises `sqlite3.Error` when it is the disk that failed."""
    connection.execute("SAVEPOINT job")
    try:
        result = job(connection)
    except Exception as error:
        if not connection.in_transaction:
            raise sqlite3.OperationalError(str(error)) from error
        if isinstance(error, sqlite3.Error) and _code(error) in _REFUSALS:
            raise
        connection.execute("ROLLBACK TO job")
        connection.execute("RELEASE job")
        if isinstance(error, sqlite3.Error) and not isinstance(error, sqlite3.IntegrityError):
            return None, disk_failure(error)
        return None, error
    connection.execute("RELEASE job")
    return result, None


def disk_failure(error: sqlite3.Error) -> FirkinError:
    """As callers may see it: a tenant learns no path of the host."""
    if _code(error) == sqlite3.SQLITE_FULL:
        return HostDiskFull("write the state database")
    return IoFailure("write", "the state database", str(error))


def _code(error: sqlite3.Error) -> int:
    """The primary result code, without what SQLite adds to it; 0 where the error is not SQLite's own."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF
