"""Programs on this machine that Firkin uses, or that can be compared with it."""

from __future__ import annotations

import ctypes.util
import datetime
import os
import shutil
from collections.abc import Iterator

from firkin.cli.failures import one_sentence
from firkin.cli.findings import Finding, Status, found
from firkin.law.errors import InvalidSpec
from firkin.settings import Settings

_RENEW_DAYS = 30
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
    ("runc", "runc", "the tier of isolation oci takes crun or runc", False),
    ("crun", "crun", "the tier of isolation oci takes crun or runc", False),
    ("runsc", "runsc", "the tier of isolation gvisor", False),
)
_PEERS = (("docker", "docker.io"), ("podman", "podman"), ("bwrap", "bubblewrap"))


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
    for name, package in _PEERS:
        path = find_program(name)
        yield Finding(
            name=name,
            status=Status.OK if path else Status.DEGRADED,
            detail=path or "not installed",
            why="only for comparison: firkin bench --peers",
            mend="" if path else f"apt-get install {package}",
        )


def tls_findings(settings: Settings) -> Iterator[Finding]:
    """Whether `firkin serve` would take the certificate of the settings, and for how long; nothing without TLS."""
    if not settings.tls and settings.tls_cert is None and settings.tls_key is None:
        return
    from firkin.bootstrap.tls import served_certificate  # cryptography loads only here

    why = "clients refuse a server whose certificate is not valid"
    try:
        served = served_certificate(settings)
    except InvalidSpec as error:
        yield Finding(name="TLS", status=Status.DEGRADED, detail=one_sentence(error), why=why, mend="firkin tls init")
        return
    assert served is not None
    left = served.until - datetime.datetime.now(datetime.UTC)
    detail = f"{served.certificate}, until {served.until:%Y-%m-%d}"
    yield found("TLS", left.days >= _RENEW_DAYS, detail, why=why, mend="renew it and restart the server")


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
