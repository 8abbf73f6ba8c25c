"""A control that a backend may lack, refused by name and with the backend's own reason."""

from __future__ import annotations

from typing import TypeVar

from firkin.law.backend import SandboxBackend
from firkin.law.capabilities import CapabilityName, Permanent
from firkin.law.errors import UnsupportedCapability

T = TypeVar("T")
_ABSENT = Permanent("this backend has no such control")


async def required(backend: SandboxBackend, control: T | None, operation: str, capability: CapabilityName) -> T:
    """`control`, or `UnsupportedCapability` when it is absent."""
    if control is not None:
        return control
    reason = (await backend.capabilities()).refusal(capability)
    raise UnsupportedCapability(operation, capability, reason or _ABSENT)
