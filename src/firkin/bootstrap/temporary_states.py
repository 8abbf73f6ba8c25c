"""State folders that live as long as one command, and what becomes of them when the command is killed.

A program that dies by SIGKILL cannot end its sandboxes. So whoever makes the
next temporary folder first looks for those that nobody holds, and ends what
still lives on them.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

from firkin.law.errors import FirkinError
from firkin.lifetimes import finish
from firkin.settings import Settings

_USUAL = "namespaces"  # with it the other tiers that were used are ended as well
_PREFIX = "firkin-run-"
_REMOVE_WITHIN_S = 60.0
_YOUNG_S = 30.0

Close = Callable[[Settings], Awaitable[None]]


@asynccontextmanager
async def temporary_state(settings: Settings, close_abandoned: Close) -> AsyncIterator[Settings]:
    """The same settings over a state folder of their own, which is removed at the end."""
    for folder, driver in _abandoned():
        with suppress(FirkinError, OSError):  # an old folder that cannot be ended must not stop a new one
            if driver:
                await close_abandoned(replace(settings, state_dir=folder, driver=driver, driver_options={}))
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    try:
        yield replace(settings, state_dir=folder, kill_on_exit=True)
    finally:
        await finish(asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True), within_s=_REMOVE_WITHIN_S)


def _abandoned() -> list[tuple[Path, str]]:
    """Our own temporary folders that no living program holds, each with the driver that it used; "" for none yet."""
    found = []
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        try:
            status = folder.lstat()
            ours = os.path.isdir(folder) and not folder.is_symlink() and status.st_uid == os.geteuid()
            if ours and time.time() - status.st_mtime > _YOUNG_S and not _held(folder / "lock"):
                found.append((folder, _driver_of(folder)))
        except OSError:
            continue
    return found


def _driver_of(folder: Path) -> str:
    try:
        drivers = sorted(path.name for path in (folder / "drivers").iterdir())
    except FileNotFoundError:
        drivers = []
    return _USUAL if _USUAL in drivers else next(iter(drivers), "")


def _held(lock: Path) -> bool:
    """Whether a living program holds the engine's lock on a state folder. One without a lock was never begun."""
    try:
        file = lock.open("rb")
    except FileNotFoundError:
        return False
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
