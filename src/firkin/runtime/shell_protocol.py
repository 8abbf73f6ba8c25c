"""The conversation with a retained shell, without I/O.

One line a command goes in: ``eval`` of the quoted text, then a marker on each
output. A marker is a control byte and a nonce that is new for every command, so
output cannot be mistaken for it, and everything before it is output as it came.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from firkin.law.errors import InvalidReason, InvalidSpec
from firkin.law.processes import CommandMode, Shell

_MARK = "\x1e"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_STATUS_DIGITS = 3


def quote(text: str) -> str:
    """`text` as one word of a shell, never a keyword, alias or assignment."""
    return "'" + text.replace("'", "'\\''") + "'"


def text_of(mode: CommandMode) -> str:
    """Shell text as it is; an argv as quoted words."""
    return mode.text if isinstance(mode, Shell) else " ".join(quote(word) for word in (mode.program, *mode.args))


def script(text: str, nonce: str, *, cwd: str | None = None, env: Mapping[str, str] | None = None) -> bytes:
    """The line that runs `text` and marks its end.

    ``command`` keeps a syntax error inside ``eval`` from ending the shell, and the
    user's own functions and aliases out of the marks. With a
    `cwd` or `env` of its own the command runs in a subshell, so both end with it.
    """
    run = f"\\command eval {quote(text)}"
    if cwd is not None or env:
        steps = [f"export {_checked(name)}={quote(value)}" for name, value in (env or {}).items()]
        if cwd is not None:
            steps.insert(0, f"cd {quote(cwd)}")
        run = f"( {' && '.join([*steps, run])} )"
    marks = f"\\command printf '\\036{nonce}%03d\\036' \"$?\"; \\command printf '\\036{nonce}000\\036' >&2"
    return f"{run} </dev/null; {marks}\n".encode("utf-8", "surrogateescape")


def _checked(name: str) -> str:
    if _NAME.fullmatch(name) is None:
        raise InvalidSpec(
            "run in a shell",
            InvalidReason.INVALID_ENVIRONMENT,
            f"a shell cannot export {name!r}; use letters, digits and '_', and no digit first",
        )
    return name


class MarkerReader:
    """Output of one command on one stream, until its marker. `status` is set once the marker has come."""

    def __init__(self, nonce: str) -> None:
        self._start = f"{_MARK}{nonce}".encode()
        self._length = len(self._start) + _STATUS_DIGITS + 1
        self._pending = b""
        self.status: int | None = None

    def feed(self, data: bytes) -> bytes:
        """What of the pending bytes is certainly output. Bytes after the marker are dropped."""
        if self.status is not None:
            return b""
        self._pending += data
        at = self._pending.find(self._start)
        if at >= 0:
            return self._at_marker(at)
        kept = self._possible_start()
        output, self._pending = self._pending[: len(self._pending) - kept], self._pending[len(self._pending) - kept :]
        return output

    def rest(self) -> bytes:
        """What is left when no marker will come any more."""
        output, self._pending = self._pending, b""
        return output

    def _at_marker(self, at: int) -> bytes:
        output, self._pending = self._pending[:at], self._pending[at:]
        if len(self._pending) >= self._length:
            self.status = int(self._pending[len(self._start) : self._length - 1])
            self._pending = b""
        return output

    def _possible_start(self) -> int:
        """How many of the last bytes may be the beginning of the marker."""
        longest = min(len(self._pending), len(self._start) - 1)
        at = self._pending.find(self._start[:1], len(self._pending) - longest) if longest else -1
        while at >= 0:
            if self._start.startswith(self._pending[at:]):
                return len(self._pending) - at
            at = self._pending.find(self._start[:1], at + 1)
        return 0
