"""What may be asked of a template: refused here before anything is done."""

from __future__ import annotations

import hashlib
import re

from firkin.engine.offer import TEMPLATE_BUILDS
from firkin.law.capabilities import BuildFeatureGated, Capabilities, CapabilityName, Permanent
from firkin.law.errors import InvalidReason, InvalidSpec, UnsupportedCapability
from firkin.law.ids import TemplateId
from firkin.law.processes import check_environment
from firkin.law.templates import (
    ENVD_PORT,
    EnvdPlane,
    GitSource,
    Provisioning,
    TemplateSource,
    TemplateSpec,
    describe_source,
)

MAX_TIMEOUT_S = 24 * 3600.0
_PREPARE = "prepare template"
_SERVED = (ENVD_PORT, "/health")


def check_template(spec: TemplateSpec, offer: Capabilities) -> None:
    """`InvalidSpec` for nonsense, `UnsupportedCapability` for what this engine does not do."""
    if not 0 < spec.timeout_s <= MAX_TIMEOUT_S:
        raise InvalidSpec(
            _PREPARE,
            InvalidReason.INVALID_TIMEOUT,
            f"the timeout is {spec.timeout_s:g} s; it must be above 0 and at most {MAX_TIMEOUT_S:.0f}",
        )
    check_environment(spec.env)
    if isinstance(spec.source, GitSource):
        reason = BuildFeatureGated("sources from git")
        raise UnsupportedCapability(_PREPARE, CapabilityName.TEMPLATE_PREPARE, reason)
    if spec.setup or spec.start is not None or spec.ready is not None:
        raise UnsupportedCapability(_PREPARE, CapabilityName.TEMPLATE_READY, TEMPLATE_BUILDS)
    plane = _plane_capability(spec)
    offer.require(_PREPARE, CapabilityName.TEMPLATE_PREPARE, plane)
    if isinstance(spec.data_plane, EnvdPlane) and (spec.data_plane.port, spec.data_plane.health_path) != _SERVED:
        raise UnsupportedCapability(_PREPARE, plane, Permanent(f"the data plane answers on {_SERVED[0]}{_SERVED[1]}"))


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
