"""What the agent's refusals mean to callers: the one table from wire codes to the law's errors.

The text of a refusal comes from inside the sandbox: it is shown, cut and made
printable, and never branched on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from firkin.law.errors import (
    AlreadyExists,
    BackendFailure,
    FileFault,
    FilesystemFailure,
    FirkinError,
    InvalidReason,
    InvalidSpec,
    NotFound,
    PortFailure,
    ProcessFailure,
    ProcessFault,
    ResourceKind,
    SandboxUnavailable,
)
from firkin.wire.operations import CODES

_LONGEST_TEXT = 1000

# For codes that are a fault of the file, and of the process, that the operation was about.
_FAULTS: dict[str, tuple[FileFault, ProcessFault]] = {
    "is_directory": (FileFault.IS_A_DIRECTORY, ProcessFault.OTHER),
    "not_directory": (FileFault.NOT_A_DIRECTORY, ProcessFault.OTHER),
    "not_empty": (FileFault.NOT_EMPTY, ProcessFault.OTHER),
    "not_regular": (FileFault.NOT_REGULAR, ProcessFault.OTHER),
    "no_space": (FileFault.NO_SPACE, ProcessFault.OTHER),
    "permission": (FileFault.PERMISSION, ProcessFault.CANNOT_START),
    "loop": (FileFault.TOO_MANY_LINKS, ProcessFault.OTHER),
    "cross_device": (FileFault.CROSS_DEVICE, ProcessFault.OTHER),
    "name_too_long": (FileFault.NAME_TOO_LONG, ProcessFault.OTHER),
    "read_only": (FileFault.READ_ONLY, ProcessFault.OTHER),
    "network_filesystem": (FileFault.NETWORK_FILESYSTEM, ProcessFault.OTHER),
    "limit": (FileFault.LIMIT, ProcessFault.LIMIT),
    "unsupported": (FileFault.OTHER, ProcessFault.OTHER),
    "cwd_missing": (FileFault.OTHER, ProcessFault.CWD_MISSING),
    "cannot_start": (FileFault.OTHER, ProcessFault.CANNOT_START),
    "stdin_closed": (FileFault.OTHER, ProcessFault.STDIN_CLOSED),
    "not_a_pty": (FileFault.OTHER, ProcessFault.NOT_A_PTY),
    "pty_stdin": (FileFault.OTHER, ProcessFault.PTY_STDIN),
}


class GuestRefused(Exception):
    """The agent answered ERROR. `code` is one of the wire's; anything else it says counts as ``internal``."""

    def __init__(self, code: str, message: str) -> None:
        printable = "".join(c if c.isprintable() else "?" for c in message[:_LONGEST_TEXT])
        super().__init__(printable)
        self.code = code if code in CODES else "internal"
        self.message = printable


def file_error(refused: GuestRefused, operation: str, sandbox_id: str, path: str, user: str = "") -> FirkinError:
    common = _common_error(refused, operation, sandbox_id, user)
    if common is not None:
        return common
    if refused.code == "not_found":
        return NotFound(operation, ResourceKind.FILE, path)
    if refused.code == "exists":
        return AlreadyExists(operation, ResourceKind.FILE, path)
    if refused.code == "invalid":
        return InvalidSpec(operation, InvalidReason.INVALID_PATH, refused.message)
    if refused.code in _FAULTS:
        fault, _ = _FAULTS[refused.code]
        return FilesystemFailure(operation, fault, refused.message, sandbox_id=sandbox_id, path=path)
    return BackendFailure(operation, "the agent", refused.message)


def process_error(
    refused: GuestRefused, operation: str, sandbox_id: str, process: str | None = None, user: str = ""
) -> FirkinError:
    common = _common_error(refused, operation, sandbox_id, user)
    if common is not None:
        return common
    if refused.code == "no_process":
        return NotFound(operation, ResourceKind.PROCESS, process or "")
    if refused.code == "invalid":
        return InvalidSpec(operation, InvalidReason.INVALID_COMMAND, refused.message)
    if refused.code in _FAULTS:
        _, fault = _FAULTS[refused.code]
        return ProcessFailure(operation, fault, refused.message, sandbox_id=sandbox_id, process_id=process)
    return BackendFailure(operation, "the agent", refused.message)


def port_error(refused: GuestRefused, operation: str, port: int) -> FirkinError:
    return PortFailure(operation, port, refused.message, refused=refused.code == "refused")


def _common_error(refused: GuestRefused, operation: str, sandbox_id: str, user: str) -> FirkinError | None:
    if refused.code == "no_user":
        return NotFound(operation, ResourceKind.USER, user)
    if refused.code == "gone":
        return SandboxUnavailable(operation, sandbox_id, refused.message)
    return None


@contextmanager
def file_errors(operation: str, sandbox_id: str, path: str, user: str = "") -> Iterator[None]:
    """Refusals inside the block leave it as the law's errors about the file `path`."""
    try:
        yield
    except GuestRefused as refused:
        raise file_error(refused, operation, sandbox_id, path, user) from None


@contextmanager
def process_errors(operation: str, sandbox_id: str, process: str | None = None, user: str = "") -> Iterator[None]:
    """Refusals inside the block leave it as the law's errors about `process`."""
    try:
        yield
    except GuestRefused as refused:
        raise process_error(refused, operation, sandbox_id, process, user) from None
