"""The law's errors as the E2B protocol says them. No other module knows both."""

from __future__ import annotations

import math

from firkin.e2b.connect_codec import Code, RpcError
from firkin.e2b.exchange import Refused
from firkin.law.errors import (
    AlreadyExists,
    CapacityRejected,
    DeadlineExceeded,
    FileFault,
    FilesystemFailure,
    FirkinError,
    InvalidSpec,
    NotFound,
    PortFailure,
    ProcessFailure,
    ProcessFault,
    RejectReason,
    ResourceKind,
    RetryClass,
    SandboxUnavailable,
    SnapshotIntegrityFailure,
    TemplatePrepareFailure,
    UnsupportedCapability,
    WrongState,
)
from firkin.law.ids import ProcessTag

_STATUS: tuple[tuple[type[FirkinError], int], ...] = (
    (InvalidSpec, 400),
    (UnsupportedCapability, 400),
    (NotFound, 404),
    (AlreadyExists, 409),
    (WrongState, 409),
    (CapacityRejected, 503),
    (DeadlineExceeded, 504),
    (TemplatePrepareFailure, 500),
    (SnapshotIntegrityFailure, 422),
)

_FILE_CODES = {
    FileFault.IS_A_DIRECTORY: Code.INVALID_ARGUMENT,
    FileFault.NOT_A_DIRECTORY: Code.INVALID_ARGUMENT,
    FileFault.NOT_EMPTY: Code.FAILED_PRECONDITION,
    FileFault.NO_SPACE: Code.RESOURCE_EXHAUSTED,
    FileFault.PERMISSION: Code.PERMISSION_DENIED,
    FileFault.TOO_MANY_LINKS: Code.INVALID_ARGUMENT,
    FileFault.CROSS_DEVICE: Code.INVALID_ARGUMENT,
    FileFault.NAME_TOO_LONG: Code.INVALID_ARGUMENT,
    FileFault.NOT_REGULAR: Code.INVALID_ARGUMENT,
    FileFault.NETWORK_FILESYSTEM: Code.INVALID_ARGUMENT,
    FileFault.READ_ONLY: Code.FAILED_PRECONDITION,
    FileFault.LIMIT: Code.RESOURCE_EXHAUSTED,
}

_PROCESS_ANSWERS = {
    ProcessFault.CANNOT_START: (Code.INVALID_ARGUMENT, None),
    ProcessFault.STDIN_CLOSED: (Code.INTERNAL, "error writing to stdin: stdin not enabled or closed"),
    ProcessFault.PTY_STDIN: (
        Code.UNKNOWN,
        "cannot close stdin for PTY process — send Ctrl+D (0x04) instead",
    ),
    ProcessFault.NOT_A_PTY: (Code.FAILED_PRECONDITION, "tty not assigned to process"),
    ProcessFault.LIMIT: (Code.RESOURCE_EXHAUSTED, None),
    ProcessFault.TIMED_OUT: (Code.DEADLINE_EXCEEDED, None),
}


def missing_sandbox(sandbox_id: str) -> Refused:
    """Unknown, ended and somebody else's read alike."""
    return Refused(404, f"Sandbox \"{sandbox_id}\" doesn't exist or you don't have access to it")


def unreachable_sandbox(sandbox_id: str) -> Refused:
    """It may well live: only who looks it up can say that it is missing."""
    message = f'Sandbox "{sandbox_id}" is changing its state or does not answer; try again in a moment'
    return Refused(409, message, should_retry=True, retry_after_s=1)


def dead_sandbox(sandbox_id: str) -> Refused:
    """The data plane's answer for a sandbox that does not run. The SDKs read the text."""
    return Refused(502, "The sandbox was not found", should_retry=False, more={"sandboxId": sandbox_id})


def changing_sandbox(sandbox_id: str, *, should_retry: bool) -> Refused:
    """The data plane's answer for a sandbox that is neither here nor there."""
    message = "The sandbox is still transitioning. Try again in a moment."
    return Refused(409, message, should_retry=should_retry, more={"sandboxId": sandbox_id})


def left_asleep(sandbox_id: str) -> Refused:
    """The data plane's answer to who may not wake a paused sandbox."""
    message = "This sandbox can't be resumed with the credentials provided. Check your access token and try again."
    return Refused(403, message, should_retry=False, more={"sandboxId": sandbox_id})


def shut_port(sandbox_id: str, port: int) -> Refused:
    """The data plane's answer for a port that the sandbox's own policy does not let anybody reach."""
    message = f"Port {port} cannot be reached from outside: the sandbox's network policy (allowPorts) does not name it"
    return Refused(403, message, should_retry=False, more={"sandboxId": sandbox_id, "port": port})


def closed_port(sandbox_id: str, port: int) -> Refused:
    message = "The sandbox is running but port is not open"
    return Refused(502, message, should_retry=False, more={"sandboxId": sandbox_id, "port": port})


def as_refusal(error: FirkinError) -> Refused:
    """The control plane's answer to a failure."""
    if isinstance(error, NotFound) and error.resource is ResourceKind.SANDBOX:
        return missing_sandbox(error.id)
    if isinstance(error, SandboxUnavailable):
        return unreachable_sandbox(error.sandbox_id)
    if isinstance(error, CapacityRejected):
        return _no_room(error)
    status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
    retry = error.retry is RetryClass.RETRYABLE
    return Refused(status, str(error), should_retry=retry, retry_after_s=1 if retry else None)


def _no_room(error: CapacityRejected) -> Refused:
    """503 and when to come again; 400 for what will find no room however long its client waits, 429 for a quota."""
    refusal = error.refusal
    more: dict[str, object] = {"reason": refusal.reason.value}
    if error.limit is not None:
        amounts = {"value": error.limit, "requested": error.requested, "available": error.available}
        more["limit"] = {"name": error.short, **amounts, **({"unit": error.unit} if error.unit else {})}
    if refusal.position is not None:
        more["queue"] = {"position": refusal.position, "waitedMs": round(refusal.waited_s * 1000)}
    if refusal.reason is RejectReason.OVERSIZED:
        return Refused(400, str(error), should_retry=False, more=more)
    if refusal.reason is RejectReason.QUOTA:
        return Refused(429, str(error), should_retry=False, more=more)
    retry_after_s = max(1, math.ceil(refusal.retry_after_s))
    return Refused(503, str(error), should_retry=True, retry_after_s=retry_after_s, more=more)


def is_gone(error: FirkinError) -> bool:
    """Whether the failure says that the sandbox itself is not there."""
    if isinstance(error, SandboxUnavailable):
        return True
    kind = getattr(error, "resource", None)
    return isinstance(error, (NotFound, WrongState)) and kind is ResourceKind.SANDBOX


def as_rpc_error(error: FirkinError) -> RpcError:
    """A remote call's answer to a failure inside the sandbox."""
    match error:
        case ProcessFailure():
            return _of_process(error)
        case FilesystemFailure():
            return RpcError(_FILE_CODES.get(error.fault, Code.INTERNAL), str(error))
        case NotFound():
            return _of_missing(error)
        case AlreadyExists(resource=ResourceKind.FILE):
            return RpcError(Code.ALREADY_EXISTS, f"directory already exists: {error.id}")
    return RpcError(_plain_code(error), str(error))


def _of_process(error: ProcessFailure) -> RpcError:
    if error.fault is ProcessFault.CWD_MISSING:
        return RpcError(Code.INVALID_ARGUMENT, str(error))
    code, text = _PROCESS_ANSWERS.get(error.fault, (Code.INTERNAL, None))
    return RpcError(code, text or str(error))


def _of_missing(error: NotFound) -> RpcError:
    match error.resource:
        case ResourceKind.USER:
            return RpcError(Code.UNAUTHENTICATED, f"invalid username: '{error.id}'")
        case ResourceKind.PROCESS:
            kind = "tag" if isinstance(error.id, ProcessTag) else "pid"
            return RpcError(Code.NOT_FOUND, f"process with {kind} {error.id} not found")
        case ResourceKind.FILE:
            return RpcError(Code.NOT_FOUND, f"file not found: {error.id}")
        case _:
            return RpcError(Code.NOT_FOUND, str(error))


def _plain_code(error: FirkinError) -> Code:
    match error:
        case InvalidSpec():
            return Code.INVALID_ARGUMENT
        case AlreadyExists():
            return Code.ALREADY_EXISTS
        case UnsupportedCapability():
            return Code.UNIMPLEMENTED
        case WrongState():
            return Code.FAILED_PRECONDITION
        case CapacityRejected():
            return Code.RESOURCE_EXHAUSTED
        case DeadlineExceeded():
            return Code.DEADLINE_EXCEEDED
        case SandboxUnavailable() | PortFailure():
            return Code.UNAVAILABLE
        case _:
            return Code.INTERNAL


_VOLUME_FILE_STATUS = {
    FileFault.NO_SPACE: 507,
    FileFault.PERMISSION: 403,
    FileFault.NOT_EMPTY: 409,
    FileFault.LIMIT: 413,
    FileFault.OTHER: 409,
    FileFault.READ_ONLY: 500,
}


def as_volume_refusal(error: FirkinError) -> Refused:
    """The answer to a failure on a volume's files: the code of its body is a word."""
    if isinstance(error, FilesystemFailure):
        status = _VOLUME_FILE_STATUS.get(error.fault, 400)
        return Refused(status, str(error), should_retry=False, more={"code": error.fault.value})
    plain = as_refusal(error)
    return Refused(plain.status, plain.message, should_retry=plain.should_retry, more={"code": error.code})


def as_file_refusal(error: FirkinError, path: str) -> Refused:
    """The answer of ``/files`` to a failure on `path`."""
    match error:
        case NotFound(resource=ResourceKind.USER):
            return Refused(401, f"error looking up user '{error.id}': user: unknown user {error.id}")
        case NotFound():
            return Refused(404, f"path '{path}' does not exist")
        case FilesystemFailure(fault=FileFault.IS_A_DIRECTORY):
            return Refused(400, f"path is a directory: {path}")
        case FilesystemFailure(fault=FileFault.NO_SPACE):
            return Refused(507, "not enough disk space available")
        case FilesystemFailure():
            known = error.fault in _FILE_CODES
            return Refused(400 if known else 500, str(error))
    return as_refusal(error)
