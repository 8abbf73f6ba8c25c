"""What a source holds, told without unpacking it.

A file is known by the digest of its bytes, and one that was read before by where
it is, its size and its times. A folder is known by the names, kinds, owners,
sizes and times of all below it: a change that leaves both times of a file as
they were cannot be made by system calls. To read all bytes instead would cost as
much as the copy that is to be saved.

Both trust no time that is younger than a clock's tick: what is written in the
same tick as it was looked at may look the same afterwards.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
import time

from firkin.host.facts import Facts
from firkin.host.stoppable import Stopped, digest_of_file, in_thread

_TICK_NS = 50_000_000


async def file_digest(path: str, facts: Facts) -> str:
    """``sha256:…`` of the file at `path`."""
    return await in_thread(lambda stopped: _digest(path, facts, stopped))


async def folder_fingerprint(path: str) -> str:
    """The same for the same folder unchanged; never the same twice while it may be changing."""
    return await in_thread(lambda stopped: _fingerprint(path, stopped))


def _digest(path: str, facts: Facts, stopped: Stopped) -> str:
    with open(path, "rb") as file:
        began = time.time_ns()
        status = os.fstat(file.fileno())
        identity = ":".join(str(part) for part in (status.st_dev, status.st_ino, *_state(status)))
        known = facts.get("digest", identity)
        if known is not None:
            return str(known["digest"])
        digest = f"sha256:{digest_of_file(file, 'sha256', stopped)}"
        if _state(os.fstat(file.fileno())) == _state(status) and _settled(status, began):
            facts.put("digest", identity, {"digest": digest})
        return digest


def _fingerprint(path: str, stopped: Stopped) -> str:
    began = time.time_ns()
    digest = hashlib.sha256()
    newest = 0
    device = os.lstat(path).st_dev
    pending = [path]
    while pending:
        folder = pending.pop()
        if stopped():
            raise InterruptedError("nobody waits for the fingerprint")
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            status = entry.stat(follow_symlinks=False)
            newest = max(newest, status.st_ctime_ns)
            digest.update(os.fsencode(entry.path) + b"\0" + repr((status.st_mode, status.st_ino)).encode())
            digest.update(repr((status.st_uid, status.st_gid, status.st_rdev, *_state(status))).encode())
            if stat.S_ISDIR(status.st_mode) and status.st_dev == device:
                pending.append(entry.path)
    unsure = "" if newest + _TICK_NS < began else f"+{secrets.token_hex(8)}"
    return f"folder:sha256:{digest.hexdigest()}{unsure}"


def _state(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _settled(status: os.stat_result, began: int) -> bool:
    return status.st_ctime_ns + _TICK_NS < began
