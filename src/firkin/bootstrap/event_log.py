"""The server's log: one event a line, ``key=value``, on standard error.

A message is the event's name; its facts come as `extra={"facts": {...}}`. What
libraries log is shown the same way. Secrets are never given to a log call.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import UTC, datetime
from typing import TextIO

_PLAIN = re.compile(r"[A-Za-z0-9_.:/@+,-]+")

_FACTS = re.compile(r"(?:^| )[a-z_]+=.*", re.DOTALL)

log = logging.getLogger("firkin")


class KeyValueFormatter(logging.Formatter):
    """``time=… level=… logger=… event=… key=value …``; a value with spaces or quotes is written as JSON."""

    def format(self, record: logging.LogRecord) -> str:
        event, told = _split(record.getMessage())
        facts: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            **({"event": event} if event else {}),
            **getattr(record, "facts", {}),
        }
        if record.exc_info and record.exc_info[1] is not None:
            facts["error"] = f"{type(record.exc_info[1]).__name__}: {record.exc_info[1]}"
            facts["traceback"] = self.formatException(record.exc_info)
        return " ".join([*(f"{key}={_value(value)}" for key, value in facts.items()), *told])


def _split(message: str) -> tuple[str, list[str]]:
    """A message's words, and the ``key=value`` part that it ends with, which stays as it is but on one line."""
    match = _FACTS.search(message)
    if match is None:
        return message, []
    told = match[0].strip()
    if not told.isprintable():
        told = "".join(letter if letter.isprintable() else f"\\x{ord(letter):02x}" for letter in told)
    return message[: match.start()].strip(), [told]


def _value(value: object) -> str:
    text = str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text)


def start_log(level: str, stream: TextIO = sys.stderr) -> None:
    """Send every logger's records of `level` and above to `stream`. Called once by a program, never by the library."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(KeyValueFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it warns of what clients send: theirs to fill
    logging.getLogger("firkin").setLevel(level.upper())


def event(name: str, **facts: object) -> None:
    """Log an event of the server itself."""
    log.info(name, extra={"facts": facts})
