"""Small things worth remembering over restarts, each a file of its own, written whole.

Nothing here is needed: whoever misses a fact finds it out again. So one that
cannot be read is one that is not there, and none is made durable.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any  # the JSON edge: what is read was written by this module

_NEW = ".new-"


class Facts:
    """The facts below `directory`, which is made when the first is written."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def get(self, kind: str, key: str) -> dict[str, Any] | None:
        path = self._path(kind, key)
        try:
            value = json.loads(path.read_bytes())
            os.utime(path)
        except (OSError, ValueError):
            return None
        return value if isinstance(value, dict) else None

    def put(self, kind: str, key: str, value: dict[str, Any]) -> None:
        """A full disk loses the fact, not the caller's work."""
        path = self._path(kind, key)
        aside = path.with_name(f"{_NEW}{secrets.token_hex(8)}")
        with suppress(OSError):
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                aside.write_text(json.dumps(value))
                os.rename(aside, path)
            finally:
                aside.unlink(missing_ok=True)

    def forget(self, *, before: float) -> None:
        """Drop what nobody has asked for since then."""
        with suppress(OSError):
            for entry in os.scandir(self._directory):
                with suppress(OSError):
                    if entry.stat().st_mtime <= before:
                        os.unlink(entry.path)

    def _path(self, kind: str, key: str) -> Path:
        return self._directory / f"{kind}-{hashlib.sha256(key.encode()).hexdigest()}"
