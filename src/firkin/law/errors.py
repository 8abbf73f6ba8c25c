"""Every failure a caller can see.

FirkinError
├── UnsupportedCapability    well formed, but nothing here offers it, and why
├── InvalidSpec              the caller asked for something malformed
├── NotFound                 no such sandbox, process, file, template, …
├── AlreadyExists            the name is taken
├── WrongState               legal request, wrong moment
├── CapacityRejected         well formed, but the machine is full; says what is short
│   └── HostDiskFull         its disk ran out in the middle of the work
├── DeadlineExceeded         we stopped waiting; the work may still be going on
├── TemplatePrepareFailure   the template cannot be made; the fault says why
├── ProcessFailure           a process operation failed (not: a program exited with 1)
├── FilesystemFailure        a file operation failed inside the sandbox
├── SnapshotIntegrityFailure a stored snapshot is not what was stored
├── PortFailure              a port inside could not be reached or exposed
├── SandboxUnavailable       the sandbox ended, a pause cut in, or its agent is gone
├── BackendFailure           the substrate broke under a healthy request
└── IoFailure                the host's own files or sockets failed

Rules: a guest program's failure is a value (`CommandStatus`), ours is an
exception, and the two never share a class. Text is for people; code branches on
the class and its fields. Every class has a unique `code` and every error a
retry class.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from firkin.law.capabilities import CapabilityName, CapabilityReason


class RetryClass(StrEnum):
    """What a caller may expect from repeating the same request."""

    RETRYABLE = "retryable"
    NOT_RETRYABLE = "not_retryable"
    UNKNOWN = "unknown"


class ResourceKind(StrEnum):
    RUNTIME = "runtime"
    TEMPLATE = "template"
    SANDBOX = "sandbox"
    PROCESS = "process"
    SNAPSHOT = "snapshot"
    WARM_POOL = "warm-pool entry"
    PORT = "port"
    FILE = "file"
    USER = "user"
    WATCH = "watch"
    VOLUME = "volume"
    WEBHOOK = "webhook"
    SECRET = "secret"


class InvalidReason(StrEnum):
    MISSING_BACKEND = "missing_backend"
    MISSING_TEMPLATE = "missing_template"
    MISSING_SNAPSHOT = "missing_snapshot"
    MISSING_SANDBOX = "missing_sandbox"
    MISSING_VOLUME = "missing_volume"
    MISSING_SECRET = "missing_secret"
    INVALID_ID = "invalid_id"
    INVALID_PATH = "invalid_path"
    INVALID_MODE = "invalid_mode"
    INVALID_RANGE = "invalid_range"
    INVALID_USER = "invalid_user"
    INVALID_PORT = "invalid_port"
    INVALID_TIMEOUT = "invalid_timeout"
    INVALID_RESOURCES = "invalid_resources"
    INVALID_COMMAND = "invalid_command"
    INVALID_DATA_PLANE = "invalid_data_plane"
    INVALID_ENVIRONMENT = "invalid_environment"
    INVALID_METADATA = "invalid_metadata"
    INVALID_NETWORK = "invalid_network"
    INVALID_VOLUME = "invalid_volume"
    INVALID_SECRET = "invalid_secret"
    INVALID_SETTINGS = "invalid_settings"
    INVALID_ISOLATION = "invalid_isolation"


class TemplateFault(StrEnum):
    """Why a template could not be prepared."""

    ENVD_MISSING = "envd_missing"
    ENVD_WRONG_ARCH = "envd_wrong_arch"
    ENVD_VERSION_MISMATCH = "envd_version_mismatch"
    ENVD_INTEGRITY_MISMATCH = "envd_integrity_mismatch"
    ENVD_HEALTH_FAILED = "envd_health_failed"
    ENVD_INIT_FAILED = "envd_init_failed"
    ENTRYPOINT_UNSUPPORTED = "entrypoint_unsupported"
    ENTRYPOINT_NOT_WRAPPED = "entrypoint_not_wrapped"
    PORT_CONFLICT = "port_conflict"
    DEFAULT_USER_MISSING = "default_user_missing"
    DEFAULT_WORKDIR_MISSING = "default_workdir_missing"
    READ_ONLY_ROOTFS = "read_only_rootfs"
    WRITABLE_LAYER_REQUIRED = "writable_layer_required"
    UNSUPPORTED_IMAGE_CONFIG = "unsupported_image_config"
    REGISTRY_UNAVAILABLE = "registry_unavailable"
    SNAPSHOT_AFTER_PREPARE_FAILED = "snapshot_after_prepare_failed"
    SOURCE_MISSING = "source_missing"
    SOURCE_CORRUPT = "source_corrupt"
    TOOL_MISSING = "tool_missing"
    STEP_FAILED = "step_failed"
    START_FAILED = "start_failed"
    TOO_MANY_LAYERS = "too_many_layers"


class FileFault(StrEnum):
    """Why a file operation failed; a missing file is `NotFound`, a taken name `AlreadyExists`."""

    IS_A_DIRECTORY = "is_a_directory"
    NOT_A_DIRECTORY = "not_a_directory"
    NOT_EMPTY = "not_empty"
    NO_SPACE = "no_space"
    PERMISSION = "permission"
    TOO_MANY_LINKS = "too_many_links"
    CROSS_DEVICE = "cross_device"
    NAME_TOO_LONG = "name_too_long"
    NOT_REGULAR = "not_regular"
    NETWORK_FILESYSTEM = "network_filesystem"
    READ_ONLY = "read_only"
    LIMIT = "limit"
    OTHER = "other"


class ProcessFault(StrEnum):
    CANNOT_START = "cannot_start"
    CWD_MISSING = "cwd_missing"
    STDIN_CLOSED = "stdin_closed"
    NOT_A_PTY = "not_a_pty"
    PTY_STDIN = "pty_stdin"
    LIMIT = "limit"
    TIMED_OUT = "timed_out"
    SHELL_BUSY = "shell_busy"
    SHELL_CLOSED = "shell_closed"
    OTHER = "other"


class FirkinError(Exception):
    """Base of every failure that leaves Firkin. `str(error)` is one sentence for people.

    What a type checker finds (a number where text is annotated) is Python's own TypeError or AttributeError.
    """

    code: ClassVar[str] = "internal"

    def __init__(self, operation: str, text: str, *, retry: RetryClass = RetryClass.NOT_RETRYABLE) -> None:
        super().__init__(text)
        self.operation = operation
        self.retry = retry


class UnsupportedCapability(FirkinError):
    """Of `runtime.create` it is one wish that is refused, which `reason` names: sandboxes can be made."""

    code = "unsupported_capability"

    def __init__(self, operation: str, capability: CapabilityName, reason: CapabilityReason) -> None:
        one_wish = capability.value == "runtime.create"
        why = str(reason) if one_wish else f"{capability.value} is not offered here ({reason})"
        super().__init__(operation, f"cannot {operation}: {why}")
        self.capability = capability
        self.reason = reason


class InvalidSpec(FirkinError):
    code = "invalid_spec"

    def __init__(self, operation: str, reason: InvalidReason, detail: str) -> None:
        super().__init__(operation, detail)
        self.reason = reason


class NotFound(FirkinError):
    """`detail` says what happened to the resource, where that is known."""

    code = "not_found"

    def __init__(self, operation: str, resource: ResourceKind, id: str, *, detail: str = "") -> None:
        text = f"{resource.value} {id!r} was not found" + (f": {detail}" if detail else "")
        super().__init__(operation, text)
        self.resource = resource
        self.id = id
        self.detail = detail


class AlreadyExists(FirkinError):
    code = "already_exists"

    def __init__(self, operation: str, resource: ResourceKind, id: str) -> None:
        super().__init__(operation, f"{resource.value} {id!r} already exists")
        self.resource = resource
        self.id = id


class WrongState(FirkinError):
    """The resource exists but is `state`, in which `operation` is not allowed."""

    code = "wrong_state"

    def __init__(
        self,
        operation: str,
        resource: ResourceKind,
        id: str,
        state: str,
        *,
        retry: RetryClass = RetryClass.NOT_RETRYABLE,
    ) -> None:
        verb = "has" if state.startswith("failed") else "is"
        super().__init__(operation, f"cannot {operation}: {resource.value} {id!r} {verb} {state}", retry=retry)
        self.resource = resource
        self.id = id
        self.state = state


class RejectReason(StrEnum):
    """Why somebody for whom there was no room was not left to wait, or not any longer."""

    NO_ROOM = "no_room"
    OVERSIZED = "oversized"
    QUEUE_FULL = "queue_full"
    DEADLINE_PASSED = "deadline_passed"
    PRESSURE = "pressure"
    SHUTTING_DOWN = "shutting_down"
    QUOTA = "quota"


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """How it came that there was no room.

    `position` is the place in the queue, from 1, that who has queued had at first, less those served since. Who
    gave up before it is counted: of many that wait the same time, each would be the first when its time is over.
    """

    reason: RejectReason = RejectReason.NO_ROOM
    position: int | None = None
    waited_s: float = 0.0
    retry_after_s: float = 1.0


_ENDS = {
    RejectReason.NO_ROOM: "",
    RejectReason.OVERSIZED: "; ask for less",
    RejectReason.QUEUE_FULL: ", and the queue for it is full",
    RejectReason.DEADLINE_PASSED: ", and none came free in {waited:.1f} s",
    RejectReason.PRESSURE: ", and the machine is below what it must keep free",
    RejectReason.SHUTTING_DOWN: ", and the server is shutting down",
    RejectReason.QUOTA: "; kill some of them, or pause without memory",
}


class CapacityRejected(FirkinError):
    """The machine cannot take it now. `short` names the resource; amounts are in its own unit.

    `limit` is what may be used of it in all, or, where nothing of it was asked for (`requested` 0), what must stay
    free; None where there is no such number.
    """

    code = "capacity_rejected"

    def __init__(
        self,
        operation: str,
        short: str,
        *,
        requested: int,
        available: int,
        unit: str = "",
        limit: int | None = None,
        refusal: Refusal | None = None,
    ) -> None:
        self.refusal = refusal or Refusal()
        oversized = self.refusal.reason is RejectReason.OVERSIZED
        amounts = f"asked for {requested}{_of(unit)}, {available}{_of(unit)} left"
        if not requested and limit is not None:
            amounts = f"{available}{_of(unit)} left, and {limit}{_of(unit)} must stay free"
        elif limit is not None:
            amounts += f" of {limit}{_of(unit)}"
        end = _ENDS[self.refusal.reason].format(waited=self.refusal.waited_s)
        place = f" (at place {self.refusal.position} of the queue)" if self.refusal.position else ""
        super().__init__(
            operation,
            f"cannot {operation}: not enough {short} ({amounts}){end}{place}",
            retry=RetryClass.NOT_RETRYABLE if oversized else RetryClass.RETRYABLE,
        )
        self.short = short
        self.requested = requested
        self.available = available
        self.unit = unit
        self.limit = limit

    def because(self, refusal: Refusal) -> CapacityRejected:
        """The same shortage, with what became of the one that met it."""
        return CapacityRejected(
            self.operation,
            self.short,
            requested=self.requested,
            available=self.available,
            unit=self.unit,
            limit=self.limit,
            refusal=refusal,
        )


def _of(unit: str) -> str:
    return f" {unit}" if unit else ""


class HostDiskFull(CapacityRejected):
    """The host's disk, or the server's quota on it, ran out in the middle of something. Nothing of that is kept."""

    code = "host_disk_full"

    def __init__(self, operation: str) -> None:
        FirkinError.__init__(
            self,
            operation,
            f"cannot {operation}: the disk of the host is full; free some space and try again",
            retry=RetryClass.RETRYABLE,
        )
        self.short, self.requested, self.available = "free disk on the host", 0, 0
        self.unit, self.limit, self.refusal = "bytes", None, Refusal()

    @classmethod
    def explains(cls, error: OSError) -> bool:
        """Whether a failed write says just that."""
        return error.errno in (errno.ENOSPC, errno.EDQUOT)


class DeadlineExceeded(FirkinError):
    """`detail` says what becomes of the work and what to do, where that is known."""

    code = "deadline_exceeded"

    def __init__(self, operation: str, within_s: float, *, sandbox_id: str | None = None, detail: str = "") -> None:
        text = f"{operation} did not finish within {within_s:g} s" + (f": {detail}" if detail else "")
        super().__init__(operation, text, retry=RetryClass.UNKNOWN)
        self.within_s = within_s
        self.sandbox_id = sandbox_id


class TemplatePrepareFailure(FirkinError):
    """`step` says where, as `firkin.law.build_steps.BuildLine` does, when it is known."""

    code = "template_prepare_failure"

    def __init__(
        self, fault: TemplateFault, detail: str, *, step: str = "", retry: RetryClass = RetryClass.NOT_RETRYABLE
    ) -> None:
        super().__init__("prepare template", detail, retry=retry)
        self.fault = fault
        self.step = step


class ProcessFailure(FirkinError):
    code = "process_failure"

    def __init__(
        self,
        operation: str,
        fault: ProcessFault,
        detail: str,
        *,
        sandbox_id: str | None = None,
        process_id: str | None = None,
    ) -> None:
        super().__init__(operation, detail)
        self.fault = fault
        self.sandbox_id = sandbox_id
        self.process_id = process_id


class FilesystemFailure(FirkinError):
    code = "filesystem_failure"

    def __init__(
        self,
        operation: str,
        fault: FileFault,
        detail: str,
        *,
        sandbox_id: str | None = None,
        path: str | None = None,
    ) -> None:
        super().__init__(operation, detail)
        self.fault = fault
        self.sandbox_id = sandbox_id
        self.path = path


class SnapshotIntegrityFailure(FirkinError):
    code = "snapshot_integrity_failure"

    def __init__(self, operation: str, snapshot_id: str | None, detail: str) -> None:
        super().__init__(operation, detail)
        self.snapshot_id = snapshot_id


class PortFailure(FirkinError):
    """`refused` is true when the sandbox runs but nothing listens on the port."""

    code = "port_failure"

    def __init__(self, operation: str, port: int, detail: str, *, refused: bool = False) -> None:
        super().__init__(operation, detail, retry=RetryClass.UNKNOWN)
        self.port = port
        self.refused = refused


class SandboxUnavailable(FirkinError):
    """The sandbox ended or was paused, or its agent stopped answering, in the middle of a healthy request.

    `paused`: it is there, and only a pause broke this off.
    """

    code = "sandbox_unavailable"

    def __init__(self, operation: str, sandbox_id: str, detail: str, *, paused: bool = False) -> None:
        what = "was paused" if paused else "is gone"
        super().__init__(operation, f"sandbox {sandbox_id!r} {what}: {detail}", retry=RetryClass.UNKNOWN)
        self.sandbox_id = sandbox_id
        self.paused = paused


class BackendFailure(FirkinError):
    code = "backend_failure"

    def __init__(self, operation: str, backend: str, detail: str, *, retry: RetryClass = RetryClass.UNKNOWN) -> None:
        super().__init__(operation, f"{operation} failed in {backend}: {detail}", retry=retry)
        self.backend = backend


class IoFailure(FirkinError):
    code = "io_failure"

    def __init__(self, operation: str, resource: str, detail: str, *, retry: RetryClass = RetryClass.UNKNOWN) -> None:
        super().__init__(operation, f"cannot {operation} {resource}: {detail}", retry=retry)
        self.resource = resource
