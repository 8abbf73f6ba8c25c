"""SQLite behind one thread, so that the loop never waits for a disk.

Jobs that are waiting together are committed together. A job is answered only
after its commit. WAL with ``synchronous=NORMAL``: what was answered survives the
death of the process at any instant; a power cut may lose the last commits but
never the consistency of the file. What has happened anyway is kept for as long
as the disk takes nothing, and then written: see `engine.transactions`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar  # Any: the results of jobs of every type share one queue

from firkin.engine.transactions import Job, Request, Writer
from firkin.law.errors import BackendFailure, IoFailure, RetryClass
from firkin.lifetimes import finish

_log = logging.getLogger("firkin.engine")

T = TypeVar("T")

_BATCH = 256
_BUSY_S = 5.0
_CLOSE_S = 10.0
_TRY_AGAIN_S = 1.0

MIGRATIONS: Sequence[str] = (
    """
    CREATE TABLE sandboxes (
        id TEXT PRIMARY KEY,
        state TEXT NOT NULL,
        ended_at REAL,
        info TEXT NOT NULL,
        origin TEXT NOT NULL,
        ref TEXT
    ) WITHOUT ROWID;
    CREATE INDEX sandboxes_by_state ON sandboxes (state, ended_at);
    CREATE TABLE templates (
        id TEXT PRIMARY KEY,
        record TEXT NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE journal (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        sandbox_id TEXT NOT NULL,
        at REAL NOT NULL,
        was TEXT NOT NULL,
        became TEXT NOT NULL,
        cause TEXT NOT NULL,
        actor TEXT NOT NULL
    );
    CREATE INDEX journal_by_sandbox ON journal (sandbox_id, seq);
    """,
    """
    CREATE TABLE snapshots (
        id TEXT PRIMARY KEY,
        record TEXT NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE facts (
        name TEXT PRIMARY KEY,
        value TEXT NOT NULL
    ) WITHOUT ROWID;
    """,
    """
    ALTER TABLE journal ADD COLUMN owner TEXT NOT NULL DEFAULT '';
    ALTER TABLE journal ADD COLUMN template TEXT NOT NULL DEFAULT '';
    UPDATE journal SET
        owner = COALESCE((SELECT json_extract(info, '$.owner') FROM sandboxes WHERE id = sandbox_id), ''),
        template = COALESCE((SELECT json_extract(info, '$.template_id') FROM sandboxes WHERE id = sandbox_id), '');
    CREATE INDEX journal_by_owner ON journal (owner, seq);
    CREATE TABLE remains (
        id TEXT PRIMARY KEY,
        peak_memory_bytes INTEGER NOT NULL DEFAULT 0,
        lines TEXT NOT NULL DEFAULT '[]'
    ) WITHOUT ROWID;
    CREATE TABLE webhooks (
        id TEXT PRIMARY KEY,
        url TEXT NOT NULL,
        secret TEXT NOT NULL,
        events TEXT NOT NULL,
        created_at REAL NOT NULL,
        delivered INTEGER NOT NULL,
        failures INTEGER NOT NULL DEFAULT 0,
        last_failure TEXT NOT NULL DEFAULT '',
        failing_since REAL
    ) WITHOUT ROWID;
    """,
    """
    CREATE TABLE named_templates (
        id TEXT PRIMARY KEY,
        record TEXT NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE builds (
        id TEXT PRIMARY KEY,
        template TEXT NOT NULL,
        record TEXT NOT NULL,
        entries TEXT NOT NULL
    ) WITHOUT ROWID;
    """,
    """
    CREATE TABLE volumes (
        id TEXT PRIMARY KEY,
        owner TEXT NOT NULL,
        name TEXT NOT NULL,
        size_bytes INTEGER NOT NULL,
        created_at REAL NOT NULL,
        UNIQUE (owner, name)
    ) WITHOUT ROWID;
    """,
    """
    CREATE TABLE secrets (
        id TEXT PRIMARY KEY,
        owner TEXT NOT NULL,
        name TEXT NOT NULL,
        version INTEGER NOT NULL,
        metadata TEXT NOT NULL,
        created_at REAL NOT NULL,
        updated_at REAL NOT NULL,
        sealed BLOB NOT NULL,
        UNIQUE (owner, name)
    ) WITHOUT ROWID;
    """,
    # From here on passwords of proxies are sealed: see `engine.sealed_policies`, which does that to older rows.
    """
    INSERT OR REPLACE INTO facts
        SELECT 'passwords in the clear', 'perhaps' WHERE EXISTS (SELECT 1 FROM journal);
    """,
)


class _Closed:
    """The last job: end the thread."""


class Database:
    """Use as ``database = await Database.open(path)`` … ``await database.aclose()``."""

    def __init__(self, path: Path, prepare: Callable[[sqlite3.Connection], None] | None = None) -> None:
        self._path = path
        self._prepare = prepare
        self._loop = asyncio.get_running_loop()
        self._jobs: queue.SimpleQueue[Request | _Closed] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="firkin-records", daemon=True)
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self._ended = asyncio.Event()
        self._closing = False

    @classmethod
    async def open(cls, path: Path, prepare: Callable[[sqlite3.Connection], None] | None = None) -> Database:
        """Open or make the file and bring its schema up to date; `BackendFailure` when a newer Firkin wrote it.

        `prepare` works on it, outside of any transaction, before anybody else does. A caller who goes away
        meanwhile leaves it closed.
        """
        database = cls(path, prepare)
        database._thread.start()
        try:
            await asyncio.shield(database._opened)  # the thread sets it, whoever waits for it
        except asyncio.CancelledError:
            database._opened.add_done_callback(asyncio.Future.exception)  # nobody else asks whether it could be opened
            with suppress(TimeoutError):  # the thread still ends as soon as it has opened
                await finish(database.aclose(), within_s=_CLOSE_S)
            raise
        return database

    async def run(self, job: Job[T], *, numbered: bool = False) -> T:
        """The job's result, once committed. `HostDiskFull` or `IoFailure` when the disk refuses.

        `IntegrityError` passes through. `numbered` reads rows by a number that others are told: it sees none that
        is only kept in memory yet.
        """
        future: asyncio.Future[T] = self._loop.create_future()
        self._ask(Request(job=job, future=future, numbered=numbered))
        return await future

    async def keep(self, job: Job[object]) -> bool:
        """Commit a job that nobody may refuse: what it tells has happened.

        False when the disk refuses now: it is written as soon as the disk takes it, before all that comes later.
        Raises as `run` only when too many wait already.
        """
        future: asyncio.Future[bool] = self._loop.create_future()
        self._ask(Request(job=job, future=future, kept=True))
        return await future

    def post(self, job: Job[object], *, kept: bool = False) -> None:
        """Run the job in its turn without anybody waiting for it; a failure is logged."""
        if self._closing:
            return
        future: asyncio.Future[object] = self._loop.create_future()
        future.add_done_callback(_log_failure)
        self._ask(Request(job=job, future=future, kept=kept))

    def _ask(self, request: Request) -> None:
        if self._closing:
            raise IoFailure("use", "the state database", "it is closed")
        self._jobs.put(request)

    async def settle(self) -> None:
        """What was committed before this is on the disk when it returns: it outlives a power cut, too."""
        await asyncio.to_thread(_sync, self._path.with_name(f"{self._path.name}-wal"))

    async def aclose(self) -> None:
        """Commit what waits and close. Idempotent."""
        if not self._closing:
            self._closing = True
            self._jobs.put(_Closed())
        async with asyncio.timeout(_CLOSE_S):
            await self._ended.wait()

    def _serve(self) -> None:
        try:
            connection = self._connect()
        except (sqlite3.Error, OSError, BackendFailure) as error:
            failure = error if isinstance(error, BackendFailure) else _disk_failure("open", self._path, error)
            self._closing = True
            self._tell(self._refuse, failure)
            return
        self._tell(self._opened.set_result, None)
        try:
            self._work(Writer(connection))
        finally:
            connection.close()
            self._tell(self._ended.set)

    def _refuse(self, failure: Exception) -> None:
        self._ended.set()
        self._opened.set_exception(failure)

    def _tell(self, callback: Callable[..., object], *args: object) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(callback, *args)

    def _connect(self) -> sqlite3.Connection:
        # webhooks' secrets are in it; SQLite gives its side files the same mode
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        self._path.chmod(0o600)
        connection = sqlite3.connect(self._path, timeout=_BUSY_S, isolation_level=None)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
            _migrate(connection)
            connection.execute("PRAGMA cache_spill=OFF")  # a full disk shows at the commit, until which all can be read
            if self._prepare is not None:
                self._prepare(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _work(self, writer: Writer) -> None:
        """Until the end was asked for."""
        batch: list[Request | _Closed] = []
        while not any(isinstance(item, _Closed) for item in batch):
            batch = self._batch(_TRY_AGAIN_S if writer.kept else None)
            requests = [item for item in batch if isinstance(item, Request)]
            answers = writer.work_off(requests)
            futures = (request.future for request in requests)
            self._tell(_deliver, [(future, *answer) for future, answer in zip(futures, answers, strict=True)])
        if writer.kept:
            _log.error("not recorded changes=%d: the state database could not be written to the end", writer.kept)

    def _batch(self, within_s: float | None) -> list[Request | _Closed]:
        """What waits, at least one, or nothing after that time."""
        batch: list[Request | _Closed] = []
        with suppress(queue.Empty):
            batch.append(self._jobs.get(timeout=within_s))
            while len(batch) < _BATCH:
                batch.append(self._jobs.get_nowait())
        return batch


def _deliver(answers: list[tuple[asyncio.Future[Any], Any, Exception | None]]) -> None:
    for future, result, error in answers:
        if future.done():  # whoever asked was cancelled; the job stands
            continue
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)


def _log_failure(future: asyncio.Future[object]) -> None:
    if not future.cancelled() and future.exception() is not None:
        _log.error("not recorded error=%s", future.exception())


def _sync(log: Path) -> None:
    """SQLite keeps its locks on its other two files, so this one may be opened and closed beside it."""
    try:
        fd = os.open(log, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise _disk_failure("sync", log, error) from error


def _migrate(connection: sqlite3.Connection) -> None:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > len(MIGRATIONS):
        raise BackendFailure(
            "open the state database",
            "the engine",
            f"its schema is version {version}, this Firkin knows up to {len(MIGRATIONS)}; use the newer Firkin",
            retry=RetryClass.NOT_RETRYABLE,
        )
    for number in range(version, len(MIGRATIONS)):
        connection.executescript(f"BEGIN; {MIGRATIONS[number]} PRAGMA user_version={number + 1}; COMMIT;")


def _disk_failure(verb: str, path: Path, error: Exception) -> IoFailure:
    return IoFailure(verb, f"the state database {path}", str(error))
