"""How runsc runs here: which of its platforms works, found by running a program on each.

The platform is how the sentry takes over system calls of the programs inside. kvm hangs
on machines whose /dev/kvm promises more than it can do; systrap is not in every version.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache

from firkin.drivers.bundles.runtimes import tried
from firkin.host.program_paths import PATH

_PLATFORMS = ("systrap", "kvm", "ptrace")
_PROBE_WITHIN_S = 3.0
_KVM = "/dev/kvm"
_FLAGS = (
    "--network=sandbox",
    "--file-access=shared",
    "--overlay2=none",
    "--host-uds=open",
    "--ignore-cgroups",
    "--oci-seccomp",
    "--net-raw",
)
_OPTIONAL = ("--buffer-pooling=false",)  # on Linux 6.18 the version of 2022 hears nothing from the network with it
_OLD = "This runsc fails programs that newer kernels do not, `ls` among them; use a newer release of gVisor for those."
_MISSING = "runsc is missing; install it: apt-get install runsc"


@dataclass(frozen=True, slots=True)
class Runsc:
    path: str
    platform: str
    trouble: str = ""
    warning: str = ""

    @property
    def flags(self) -> tuple[str, ...]:
        """What every sandbox is run with: files are written through at once (`shared`), so that what is captured is
        what programs have written; nothing is kept in memory only; and the agent may call out of the sandbox."""
        return (f"--platform={self.platform}", *_FLAGS, *_known(self.path, _OPTIONAL))


def _known(path: str, flags: tuple[str, ...]) -> tuple[str, ...]:
    """Those that this version has."""
    listed = subprocess.run(
        [path, "flags"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=_PROBE_WITHIN_S, check=False
    )
    names = {line.strip().partition(" ")[0].lstrip("-") for line in listed.stdout.decode().splitlines()}
    return tuple(flag for flag in flags if flag.lstrip("-").partition("=")[0] in names)


@cache  # of what a probe found out: a machine does not change its mind while a server runs
def runsc(platform: str = "") -> Runsc:
    """Blocks for as long as the probes take, once. `trouble` says why it cannot be used, and what mends it;
    `warning`, that it can, but not for everything."""
    path = shutil.which("runsc", path=PATH)
    if path is None:
        return Runsc("", "", _MISSING)
    told = []
    for name in (platform,) if platform else _PLATFORMS:
        if name == "kvm" and not os.access(_KVM, os.R_OK | os.W_OK):
            told.append(f"kvm: {_KVM} cannot be opened")
            continue
        argv = [path, f"--platform={name}", "--network=none", "--ignore-cgroups", "do"]
        result = tried([*argv, "/bin/true"], within_s=_PROBE_WITHIN_S)
        if not result.trouble:
            lists = tried([*argv, "/bin/ls", "/"], within_s=_PROBE_WITHIN_S)
            return Runsc(path, name, warning=_OLD if lists.trouble else "")
        told.append(f"{name}: {result.trouble}")
    return Runsc(path, "", f"runsc runs nothing on this machine ({'; '.join(told)}); see its page on platforms")
