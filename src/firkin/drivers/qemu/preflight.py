"""What this host offers the microVM driver, found by trying."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from firkin.drivers.qemu.machines import PACKAGES, program
from firkin.host import cgroups
from firkin.host.guest_kernels import can_fetch
from firkin.host.program_paths import PATH
from firkin.law.backend import Preflight
from firkin.law.capabilities import AGENT_CAPABILITIES, Capabilities, CapabilityName, Permanent

_C = CapabilityName
_OFFERED = (
    *(_C.SANDBOX_STOP, _C.SANDBOX_KILL, _C.SANDBOX_DELETE, _C.PORTS_EXPOSE, _C.NETWORK_POLICY),
    *(_C.SNAPSHOT_CAPTURE, _C.SNAPSHOT_RESTORE, _C.PAUSE_CAPTURE, _C.PAUSE_RESUME),
    *AGENT_CAPABILITIES,
)


def capabilities() -> Capabilities:
    refused = Capabilities.all_unsupported(Permanent("the qemu driver does not do this yet"))
    built = Permanent("a machine's disk is never mounted on the host: templates are built on another tier")
    return refused.with_supported(*_OFFERED).with_unsupported(built, _C.TEMPLATE_READY)


def check(state_dir: Path, kernel: str) -> Preflight:
    """One sentence, with the command that mends it, for each thing that is missing. Blocks, shortly."""
    if os.geteuid() != 0:
        return Preflight(False, ("The qemu driver needs root; start it with sudo.",))
    machine = os.uname().machine
    reasons = []
    if machine not in PACKAGES:
        reasons.append(f"There is no microVM for {machine}; there is one for {' and '.join(PACKAGES)}.")
    elif shutil.which(program(), path=PATH) is None:
        reasons.append(f"{program()} is missing; install it: apt-get install {PACKAGES[machine]}")
    if shutil.which("mkfs.erofs", path=PATH) is None:
        reasons.append("mkfs.erofs is missing; install it: apt-get install erofs-utils")
    if shutil.which("mkfs.ext4", path=PATH) is None:
        reasons.append("mkfs.ext4 is missing; install it: apt-get install e2fsprogs")
    if not os.path.exists("/dev/net/tun"):
        reasons.append("The kernel has no tap interfaces; load the module: modprobe tun")
    if not kernel and not (state_dir / "kit" / "kernel" / "kernel").exists():
        if (missing := can_fetch()) is not None:
            reasons.append(f"There is no guest kernel, and {missing}.")
        elif machine == "x86_64" and shutil.which("lz4", path=PATH) is None:
            reasons.append("lz4 is missing, which unpacks Debian's kernel; install it: apt-get install lz4")
    layout = cgroups.detect()
    lacking = [name for name in ("memory", "pids", "cpu") if name not in layout.controllers]
    if lacking:
        reasons.append(f"The kernel offers no control group controller for {', '.join(lacking)}.")
    return Preflight(not reasons, tuple(reasons))
