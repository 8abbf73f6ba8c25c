"""Each error says what was tried, on what, and carries it as fields."""

from __future__ import annotations

import pytest

from firkin.law import errors
from firkin.law.capabilities import CapabilityName, Permanent
from firkin.law.errors import FirkinError, ResourceKind, RetryClass

EVERY: list[tuple[FirkinError, str]] = [
    (
        errors.UnsupportedCapability("pause", CapabilityName.PAUSE_CAPTURE, Permanent("not built")),
        "cannot pause: pause.capture is not offered here (not built)",
    ),
    (
        errors.UnsupportedCapability("create", CapabilityName.RUNTIME_CREATE, Permanent("microVMs have no volumes")),
        "cannot create: microVMs have no volumes",
    ),
    (errors.InvalidSpec("check", errors.InvalidReason.INVALID_ID, "bad id"), "bad id"),
    (errors.NotFound("inspect", ResourceKind.SANDBOX, "a"), "sandbox 'a' was not found"),
    (
        errors.NotFound("inspect", ResourceKind.SANDBOX, "a", detail="ended by deadline"),
        "sandbox 'a' was not found: ended by deadline",
    ),
    (errors.AlreadyExists("mkdir", ResourceKind.FILE, "/a"), "file '/a' already exists"),
    (errors.WrongState("stop", ResourceKind.SANDBOX, "a", "stopped"), "cannot stop: sandbox 'a' is stopped"),
    (
        errors.CapacityRejected("create", "memory", requested=2, available=1, unit="bytes"),
        "cannot create: not enough memory (asked for 2 bytes, 1 bytes left)",
    ),
    (
        errors.CapacityRejected("create", "sandboxes", requested=1, available=0),
        "cannot create: not enough sandboxes (asked for 1, 0 left)",
    ),
    (errors.DeadlineExceeded("boot", 5.0, sandbox_id="a"), "boot did not finish within 5 s"),
    (errors.TemplatePrepareFailure(errors.TemplateFault.SOURCE_MISSING, "no such folder"), "no such folder"),
    (errors.ProcessFailure("run", errors.ProcessFault.CANNOT_START, "no program"), "no program"),
    (errors.FilesystemFailure("write", errors.FileFault.NO_SPACE, "full", path="/a"), "full"),
    (errors.SnapshotIntegrityFailure("restore", "s", "checksum differs"), "checksum differs"),
    (errors.PortFailure("connect", 80, "refused", refused=True), "refused"),
    (errors.SandboxUnavailable("run", "a", "its agent is gone"), "sandbox 'a' is gone: its agent is gone"),
    (errors.BackendFailure("boot", "memory", "broken"), "boot failed in memory: broken"),
    (errors.IoFailure("read", "/x", "denied"), "cannot read /x: denied"),
]


@pytest.mark.parametrize(("error", "text"), EVERY, ids=lambda value: type(value).__name__)
def test_the_text_is_one_sentence_for_people(error: FirkinError, text: str) -> None:
    assert str(error) == text
    assert error.operation
    assert isinstance(error.retry, RetryClass)


def test_every_kind_of_error_is_listed_here() -> None:
    ours = {kind for kind in FirkinError.__subclasses__() if kind.__module__.startswith("firkin.law.")}
    assert {type(error) for error, _ in EVERY} == ours


def test_capacity_may_be_tried_again_and_a_bad_spec_may_not() -> None:
    retries = {type(error): error.retry for error, _ in EVERY}
    assert retries[errors.CapacityRejected] is RetryClass.RETRYABLE
    assert retries[errors.InvalidSpec] is RetryClass.NOT_RETRYABLE
    assert retries[errors.DeadlineExceeded] is RetryClass.UNKNOWN
