"""What may be asked of a template: refused here before anything is done."""

from __future__ import annotations

import hashlib
import os
import re

from firkin.engine.stored_forms import written
from firkin.law.capabilities import Capabilities, CapabilityName, Permanent
from firkin.law.errors import InvalidReason, InvalidSpec, TemplateFault, TemplatePrepareFailure, UnsupportedCapability
from firkin.law.ids import TemplateId
from firkin.law.processes import check_environment
from firkin.law.templates import (
    ENVD_PORT,
    EnvdPlane,
    GitSource,
    LocalSource,
    OciSource,
    Provisioning,
    TemplateBase,
    TemplateSource,
    TemplateSpec,
    describe_source,
)

MAX_TIMEOUT_S = 24 * 3600.0
_PREPARE = "prepare template"
_GIT_BASE = TemplateId("base")
_SERVED = (ENVD_PORT, "/health")
_REFERENCE = re.compile(r"[A-Za-z0-9\[][A-Za-z0-9._:/@\[\]-]*")
_CALLERS_FAULTS = (TemplateFault.SOURCE_MISSING, TemplateFault.SOURCE_CORRUPT)


def check_template(spec: TemplateSpec, offer: Capabilities) -> None:
    """`InvalidSpec` for nonsense, `UnsupportedCapability` for what this engine does not do."""
    if not 0 < spec.timeout_s <= MAX_TIMEOUT_S:
        raise InvalidSpec(
            _PREPARE,
            InvalidReason.INVALID_TIMEOUT,
            f"the timeout is {spec.timeout_s:g} s; it must be above 0 and at most {MAX_TIMEOUT_S:.0f}",
        )
    check_environment(spec.env)
    written(_PREPARE, spec)
    if spec.is_built or spec.user is not None or spec.workdir is not None:
        offer.require(_PREPARE, CapabilityName.TEMPLATE_READY)
    if spec.workdir is not None and not spec.workdir.startswith("/"):
        raise InvalidSpec(
            _PREPARE, InvalidReason.INVALID_PATH, f"the working directory {spec.workdir!r} must be absolute"
        )
    plane = _plane_capability(spec)
    offer.require(_PREPARE, CapabilityName.TEMPLATE_PREPARE, plane)
    if isinstance(spec.data_plane, EnvdPlane):
        _check_plane(spec.data_plane, plane)


def _check_plane(wish: EnvdPlane, capability: CapabilityName) -> None:
    if (wish.port, wish.health_path) != _SERVED:
        reason = Permanent(f"the data plane answers on {_SERVED[0]}{_SERVED[1]}")
        raise UnsupportedCapability(_PREPARE, capability, reason)
    pinned = any(pin is not None for pin in (wish.version, wish.source, wish.arch))
    if pinned and wish.provisioning is Provisioning.INJECT:
        reason = Permanent("Firkin answers for the data plane itself; no version, source or architecture can be chosen")
        raise UnsupportedCapability(_PREPARE, capability, reason)


def check_source(source: TemplateSource) -> None:
    """`InvalidSpec` for a malformed image reference; `TemplatePrepareFailure` for a path where nothing is."""
    path = source.path if isinstance(source, OciSource) else source.path if isinstance(source, LocalSource) else None
    if path is not None:
        _check_path(path, tagged=isinstance(source, OciSource))
    elif isinstance(source, OciSource) and not _REFERENCE.fullmatch(source.reference):
        detail = f"{source.reference[:256]!r} is no image reference"
        raise InvalidSpec(_PREPARE, InvalidReason.MISSING_TEMPLATE, detail)


def _check_path(path: str, *, tagged: bool) -> None:
    untagged = path.rpartition(":")[0] if tagged else ""
    if "\0" in path or not path:
        raise InvalidSpec(_PREPARE, InvalidReason.INVALID_PATH, f"{path[:256]!r} is no path")
    if not any(os.path.lexists(candidate) for candidate in (path, untagged) if candidate):
        raise TemplatePrepareFailure(TemplateFault.SOURCE_MISSING, f"{path}: no such file or directory")


def base_template(source: TemplateSource) -> TemplateId | None:
    """The template on whose files the source lies; None for one that is a root of its own."""
    match source:
        case TemplateBase(template_id):
            return template_id
        case GitSource():
            return _GIT_BASE
    return None


def callers_fault(failure: BaseException) -> bool:
    """Whether a preparation failed for what was asked rather than for the state of this machine or its network."""
    if isinstance(failure, TemplatePrepareFailure):
        return failure.fault in _CALLERS_FAULTS
    return isinstance(failure, InvalidSpec | UnsupportedCapability)


def _plane_capability(spec: TemplateSpec) -> CapabilityName:
    if not isinstance(spec.data_plane, EnvdPlane):
        return CapabilityName.TEMPLATE_DATA_PLANE_NONE
    if spec.data_plane.provisioning is Provisioning.INJECT:
        return CapabilityName.TEMPLATE_DATA_PLANE_ENVD_INJECT
    return CapabilityName.TEMPLATE_DATA_PLANE_ENVD_VERIFY


def default_template_id(source: TemplateSource) -> TemplateId:
    """A readable name with a digest, so that two sources never share one."""
    text = describe_source(source)
    readable = re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-")[:64]
    digest = hashlib.sha256(f"{type(source).__name__} {text}".encode()).hexdigest()[:8]
    return TemplateId(f"{readable}-{digest}")
