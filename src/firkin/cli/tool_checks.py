"""Programs on this machine that Firkin uses, or that can be compared with it."""

from __future__ import annotations

import ctypes.util
import os
import shutil
from collections.abc import Iterator

from firkin.cli.findings import Finding, Status, found

_SYSTEM_FOLDERS = "/usr/local/sbin:/usr/sbin:/sbin"

# program, package, why, needed
_USED = (
    ("mkfs.ext4", "e2fsprogs", "formats the writable layer of a sandbox", True),
    ("nft", "nftables", "the rules that keep sandboxes from the host and from each other", True),
    ("ip", "iproute2", "network namespaces of sandboxes", True),
    ("sudo", "sudo", "lets the default user of host-based templates become root inside", False),
    ("python3", "python3", "Python inside host-based templates", False),
    ("zstd", "zstd", "unpacks tarballs and image layers that are compressed with it", False),
    ("skopeo", "skopeo", "fetches images from registries and archives", False),
    ("mmdebstrap", "mmdebstrap", "builds the recipe 'debian'", False),
)
_PEERS = (("docker", "docker.io"), ("podman", "podman"), ("bwrap", "bubblewrap"), ("runc", "runc"), ("crun", "crun"))


def find_program(name: str) -> str | None:
    """As a shell would find it, with the system folders that an unprivileged PATH leaves out."""
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:{_SYSTEM_FOLDERS}")


def tool_findings() -> Iterator[Finding]:
    yield _libseccomp()
    for name, package, why, needed in _USED:
        path = find_program(name)
        yield found(
            name, path is not None, path or "not installed", why=why, mend=f"apt-get install {package}", needed=needed
        )
    for name, package in (*_PEERS, ("runsc", "")):
        path = find_program(name)
        yield Finding(
            name=name,
            status=Status.OK if path else Status.DEGRADED,
            detail=path or "not installed",
            why="only for comparison: firkin bench --peers" if package else "only for the gVisor tier, not offered yet",
            mend="" if path else (f"apt-get install {package}" if package else "none needed today"),
        )


def _libseccomp() -> Finding:
    name = ctypes.util.find_library("seccomp")
    return found(
        "libseccomp",
        name is not None,
        name or "not installed",
        why="compiles the filter of system calls",
        mend="apt-get install libseccomp2",
        needed=True,
    )
