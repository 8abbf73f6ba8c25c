"""The output of a command kept for one JSON object, up to a limit: a program inside may write without end."""

from __future__ import annotations

from typing import Any

from firkin.cli.output import show_json, text_fields

_KEPT = 64 * 1024 * 1024


class CapturedOutput:
    """Call it with a descriptor and bytes. What is above the limit is dropped, and the result says so."""

    def __init__(self) -> None:
        self._kept = {1: bytearray(), 2: bytearray()}
        self._room = _KEPT
        self._truncated = False

    def __call__(self, descriptor: int, data: bytes, /) -> None:
        taken = data[: self._room]
        self._room -= len(taken)
        self._truncated = self._truncated or len(taken) < len(data)
        self._kept[descriptor] += taken

    def show(self, sandbox_id: str, exit_code: int) -> None:
        """Print the one object that --json promises."""
        said: dict[str, Any] = {"sandbox_id": sandbox_id, "exit_code": exit_code}
        for name, descriptor in (("stdout", 1), ("stderr", 2)):
            said |= text_fields(name, bytes(self._kept[descriptor]))
        show_json({**said, "truncated": self._truncated})
