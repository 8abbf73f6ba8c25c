"""An error as the user meets it: one sentence, an exit code, and for our own faults a file to report."""

from __future__ import annotations

import os
import tempfile
import traceback
from datetime import UTC, datetime
from pathlib import Path

from firkin.law.errors import FirkinError, InvalidSpec, UnsupportedCapability

BAD_INPUT = 2
FAILURE = 1


class CommandFailure(FirkinError):
    """The command could not do its work. `exit_code` is what the program ends with."""

    code = "command_failure"

    def __init__(self, text: str, *, exit_code: int = FAILURE) -> None:
        super().__init__("run command", text)
        self.exit_code = exit_code


def exit_code_of(error: FirkinError) -> int:
    if isinstance(error, CommandFailure):
        return error.exit_code
    return BAD_INPUT if isinstance(error, InvalidSpec | UnsupportedCapability) else FAILURE


def one_sentence(error: BaseException) -> str:
    """The error's text on one line, at most 1,000 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 1000 else text[:997] + "..."


def keep_traceback(error: BaseException) -> str:
    """Write the traceback to a file; the sentence that names it."""
    text = "".join(traceback.format_exception(error))
    sentence = f"an unexpected {type(error).__name__} happened ({one_sentence(error)})"
    for folder in _log_folders():
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
            path = folder / f"error-{stamp}-{os.getpid()}.log"
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(text)
        except OSError:
            continue
        return f"{sentence}; the details are in {path}"
    return f"{sentence}; the details could not be kept"


def _log_folders() -> list[Path]:
    named = os.environ.get("FIRKIN_STATE_DIR")
    first = Path("/var/lib/firkin") if os.geteuid() == 0 else Path("~/.local/share/firkin").expanduser()
    return [(Path(named) if named else first) / "logs", Path(tempfile.gettempdir())]
