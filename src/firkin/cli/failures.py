"""An error as the user meets it: one sentence, an exit code, and for our own faults a file to report."""

from __future__ import annotations

import os
import re
import tempfile
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from firkin.law.errors import (
    AlreadyExists,
    FirkinError,
    InvalidSpec,
    NotFound,
    ProcessFailure,
    ProcessFault,
    TemplateFault,
    TemplatePrepareFailure,
    UnsupportedCapability,
    WrongState,
)

FAILURE = 1
BAD_INPUT = 2
CANNOT_START = 126
NO_SUCH_PROGRAM = 127

_BAD_REQUESTS = (InvalidSpec, UnsupportedCapability, NotFound, WrongState, AlreadyExists)
_BAD_SOURCES = frozenset(
    {
        TemplateFault.SOURCE_MISSING,
        TemplateFault.SOURCE_CORRUPT,
        TemplateFault.DEFAULT_USER_MISSING,
        TemplateFault.DEFAULT_WORKDIR_MISSING,
    }
)
_MALFORMED = "invalid reference format"  # skopeo's words; its exit code says nothing
# What an agent says of a program that it could not start; the server passes on the text alone.
_NO_SUCH_PROGRAM = re.compile(
    r"""there is no program |['"].*['"] (?:was not found on PATH|does not exist)$""", re.DOTALL
)
_CANNOT_START = re.compile(r"""['"].*['"]: """, re.DOTALL)


class CommandFailure(FirkinError):
    """The command could not do its work. `exit_code` is what the program ends with; `status` a server's HTTP answer."""

    code = "command_failure"

    def __init__(self, text: str, *, exit_code: int = FAILURE, status: int | None = None) -> None:
        super().__init__("run command", text)
        self.exit_code = exit_code
        self.status = status


def exit_code_of(error: FirkinError) -> int:
    """2 when the request was wrong, 126 and 127 as a shell for a program that cannot be started, else 1."""
    if isinstance(error, CommandFailure):
        return error.exit_code
    if isinstance(error, ProcessFailure):
        return _of_process(error)
    if isinstance(error, TemplatePrepareFailure):
        return template_exit_code(error.fault, str(error))
    return BAD_INPUT if isinstance(error, _BAD_REQUESTS) else FAILURE


def template_exit_code(fault: str | None, text: str) -> int:
    """What a failed preparation ends with: a source that is missing, broken or misspelt is the caller's to mend,
    and so is a user or a directory that is not in it."""
    return BAD_INPUT if fault in _BAD_SOURCES or _MALFORMED in text else FAILURE


def start_exit_code(text: str) -> int | None:
    """A shell's number for an agent's sentence about a program that did not start; None for another sentence."""
    if _NO_SUCH_PROGRAM.match(text):
        return NO_SUCH_PROGRAM
    return CANNOT_START if _CANNOT_START.match(text) else None


def _of_process(error: ProcessFailure) -> int:
    if error.fault is ProcessFault.CWD_MISSING:
        return BAD_INPUT
    return (start_exit_code(str(error)) or CANNOT_START) if error.fault is ProcessFault.CANNOT_START else FAILURE


def one_sentence(error: BaseException) -> str:
    """The error's text on one line, at most 1,000 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 1000 else text[:997] + "..."


def unwritable(error: OSError) -> CommandFailure:
    """The failure of a write to standard output."""
    return CommandFailure(f"the output cannot be written: {error.strerror or type(error).__name__}")


def keep_traceback(error: BaseException, argv: Sequence[str]) -> str:
    """Write the traceback to a file in the state folder that `argv` names; the sentence that names it."""
    text = "".join(traceback.format_exception(error))
    sentence = f"an unexpected {type(error).__name__} happened ({one_sentence(error)})"
    for folder in _log_folders(argv):
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


def _log_folders(argv: Sequence[str]) -> list[Path]:
    from firkin.settings import default_state_dir  # only an unexpected error needs it

    named = _named_state_dir(argv) or os.environ.get("FIRKIN_STATE_DIR")
    return [(Path(named) if named else default_state_dir()) / "logs", Path(tempfile.gettempdir())]


def _named_state_dir(argv: Sequence[str]) -> str | None:
    """What --state-dir says before any ``--``, found without the parser, which may be what failed."""
    words = list(argv)[: argv.index("--") if "--" in argv else None]
    for at, word in enumerate(words):
        option, separator, value = word.partition("=")
        if option == "--state-dir":
            return value if separator else next(iter(words[at + 1 : at + 2]), None)
    return None
