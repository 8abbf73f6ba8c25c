"""Firkin: sandboxes for AI agents on machines you own."""

from __future__ import annotations

from importlib import import_module

from firkin.version import VERSION as __version__

TYPE_CHECKING = False  # typing itself takes longer to load than all else that a program loads before its first line
if TYPE_CHECKING:
    from typing import Any  # PEP 562 hands out names of every type

    from firkin.bootstrap import open_runtime
    from firkin.engine.backend import LocalBackend
    from firkin.law.backend import SandboxBackend
    from firkin.law.capabilities import Capabilities, CapabilityName
    from firkin.law.driver import Driver
    from firkin.law.errors import (
        AlreadyExists,
        BackendFailure,
        CapacityRejected,
        DeadlineExceeded,
        FilesystemFailure,
        FirkinError,
        HostDiskFull,
        InvalidSpec,
        IoFailure,
        NotFound,
        PortFailure,
        ProcessFailure,
        SandboxUnavailable,
        SnapshotIntegrityFailure,
        TemplatePrepareFailure,
        UnsupportedCapability,
        WrongState,
    )
    from firkin.law.network import NetworkPolicy
    from firkin.law.policies import Capacity, DeadlinePolicy, HygienePolicy, Policies
    from firkin.law.processes import (
        Command,
        CommandOutput,
        Ended,
        Exited,
        PtyOutput,
        PtySize,
        Signal,
        Signaled,
        Started,
        Stderr,
        Stdout,
    )
    from firkin.law.resources import SandboxResources
    from firkin.law.sandboxes import At, Never, SandboxFilter, SandboxInfo, SandboxSpec, Timeout
    from firkin.law.states import EndCause, SandboxState
    from firkin.law.templates import TemplateSpec
    from firkin.law.volumes import VolumeMount
    from firkin.runtime.processes import Process
    from firkin.runtime.runtime import Runtime
    from firkin.runtime.sandbox import Sandbox
    from firkin.runtime.shell import Shell, ShellOptions
    from firkin.runtime.shell_pool import ShellPool

# Loaded on first use (PEP 562): importing firkin must cost nothing to a command line that prints its help.
_HOMES = {
    "firkin.bootstrap": ("open_runtime",),
    "firkin.engine.backend": ("LocalBackend",),
    "firkin.law.backend": ("SandboxBackend",),
    "firkin.law.capabilities": ("Capabilities", "CapabilityName"),
    "firkin.law.driver": ("Driver",),
    "firkin.law.errors": (
        "AlreadyExists",
        "BackendFailure",
        "CapacityRejected",
        "DeadlineExceeded",
        "FilesystemFailure",
        "FirkinError",
        "InvalidSpec",
        "HostDiskFull",
        "IoFailure",
        "NotFound",
        "PortFailure",
        "ProcessFailure",
        "SandboxUnavailable",
        "SnapshotIntegrityFailure",
        "TemplatePrepareFailure",
        "UnsupportedCapability",
        "WrongState",
    ),
    "firkin.law.network": ("NetworkPolicy",),
    "firkin.law.policies": ("Capacity", "DeadlinePolicy", "HygienePolicy", "Policies"),
    "firkin.law.processes": (
        "Command",
        "CommandOutput",
        "Ended",
        "Exited",
        "PtyOutput",
        "PtySize",
        "Signal",
        "Signaled",
        "Started",
        "Stderr",
        "Stdout",
    ),
    "firkin.law.resources": ("SandboxResources",),
    "firkin.law.sandboxes": ("At", "Never", "SandboxFilter", "SandboxInfo", "SandboxSpec", "Timeout"),
    "firkin.law.states": ("EndCause", "SandboxState"),
    "firkin.law.templates": ("TemplateSpec",),
    "firkin.law.volumes": ("VolumeMount",),
    "firkin.runtime.processes": ("Process",),
    "firkin.runtime.runtime": ("Runtime",),
    "firkin.runtime.sandbox": ("Sandbox",),
    "firkin.runtime.shell": ("Shell", "ShellOptions"),
    "firkin.runtime.shell_pool": ("ShellPool",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "AlreadyExists",
    "At",
    "BackendFailure",
    "Capabilities",
    "CapabilityName",
    "Capacity",
    "CapacityRejected",
    "Command",
    "CommandOutput",
    "DeadlineExceeded",
    "DeadlinePolicy",
    "Driver",
    "EndCause",
    "Ended",
    "Exited",
    "FilesystemFailure",
    "FirkinError",
    "HostDiskFull",
    "HygienePolicy",
    "InvalidSpec",
    "IoFailure",
    "LocalBackend",
    "NetworkPolicy",
    "Never",
    "NotFound",
    "Policies",
    "PortFailure",
    "Process",
    "ProcessFailure",
    "PtyOutput",
    "PtySize",
    "Runtime",
    "Sandbox",
    "SandboxBackend",
    "SandboxFilter",
    "SandboxInfo",
    "SandboxResources",
    "SandboxSpec",
    "SandboxState",
    "SandboxUnavailable",
    "Shell",
    "ShellOptions",
    "ShellPool",
    "Signal",
    "Signaled",
    "SnapshotIntegrityFailure",
    "Started",
    "Stderr",
    "Stdout",
    "TemplatePrepareFailure",
    "TemplateSpec",
    "Timeout",
    "UnsupportedCapability",
    "VolumeMount",
    "WrongState",
    "__version__",
    "open_runtime",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'firkin' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
