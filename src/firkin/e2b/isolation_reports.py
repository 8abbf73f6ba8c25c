"""Tiers of isolation on the wire: the wish in a field or a header, what holds a sandbox in, what this machine can do.

E2B's SDKs send no field that they do not know, but every header that they are
given, so the wish may stand in either.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from firkin.e2b.exchange import Exchange, Refused
from firkin.e2b.networks import shown
from firkin.law.backend import TierStatus
from firkin.law.errors import InvalidSpec
from firkin.law.isolation import IdRange, Isolation, IsolationReport
from firkin.law.sandboxes import SandboxInfo

ISOLATION_HEADER = "X-Firkin-Isolation"

# By their bit, as linux/capability.h has them up to Linux 5.9; a later one shows as its number.
_CAPABILITIES = (
    *("chown", "dac_override", "dac_read_search", "fowner", "fsetid", "kill", "setgid", "setuid", "setpcap"),
    *("linux_immutable", "net_bind_service", "net_broadcast", "net_admin", "net_raw", "ipc_lock", "ipc_owner"),
    *("sys_module", "sys_rawio", "sys_chroot", "sys_ptrace", "sys_pacct", "sys_admin", "sys_boot", "sys_nice"),
    *("sys_resource", "sys_time", "sys_tty_config", "mknod", "lease", "audit_write", "audit_control", "setfcap"),
    *("mac_override", "mac_admin", "syslog", "wake_alarm", "block_suspend", "audit_read", "perfmon", "bpf"),
    "checkpoint_restore",
)


def wish_of(exchange: Exchange, field: str | None = None) -> Isolation | None:
    """The tier asked for. `Refused` (400) for an unknown one, and for two that differ."""
    header = exchange.text_header(ISOLATION_HEADER.lower().encode())
    if field is not None and header is not None and field != header:
        said = f"the field isolation says {field[:64]!r} and the header {ISOLATION_HEADER} {header[:64]!r}"
        raise Refused(400, f"{said}; leave one out", should_retry=False)
    wish = header if field is None else field
    try:
        return None if wish is None else Isolation.parse(wish)
    except InvalidSpec as error:
        raise Refused(400, str(error), should_retry=False) from error


def isolation_json(info: SandboxInfo, report: IsolationReport) -> dict[str, Any]:
    """A fact that could not be read is null, and ``unread`` has the reason under its name."""
    sets, network = report.capabilities, report.network
    return {
        "sandbox_id": str(info.id),
        "tier": report.tier,
        "driver": report.driver,
        "process": report.process,
        "accelerator": report.accelerator,
        "kernel_release": report.kernel_release,
        "uid_map": None if report.uid_map is None else [_fields(each) for each in report.uid_map],
        "capabilities": None
        if sets is None
        else {"effective": _names(sets.effective), "bounding": _names(sets.bounding)},
        "seccomp": None if report.seccomp is None else report.seccomp.value,
        "no_new_privs": report.no_new_privs,
        "namespaces": None
        if report.namespaces is None
        else {
            kind: {"inside": numbers.inside, "host": numbers.host, "own": numbers.is_own}
            for kind, numbers in report.namespaces.items()
        },
        "limits": None if report.limits is None else dict(report.limits),
        "network": None if network is None else {"internet": network.internet, **shown(replace(info, network=network))},
        "unread": dict(report.unread),
    }


def tier_json(status: TierStatus) -> dict[str, Any]:
    return {
        "isolation": None if status.isolation is None else status.isolation.value,
        "driver": status.driver,
        "default": status.is_default,
        "ready": status.preflight.ready,
        "reasons": list(status.preflight.reasons),
        "mounts_volumes": status.mounts_volumes,
        "has_gateways": status.has_gateways,
        "capabilities": {name.value: None if reason is None else str(reason) for name, reason in status.capabilities},
    }


def _fields(each: IdRange) -> dict[str, int]:
    return {"inside": each.inside, "outside": each.outside, "count": each.count}


def _names(bits: int) -> list[str]:
    known = [name for bit, name in enumerate(_CAPABILITIES) if bits >> bit & 1]
    return known + [str(bit) for bit in range(len(_CAPABILITIES), 64) if bits >> bit & 1]
