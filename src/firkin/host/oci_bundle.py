"""The ``config.json`` of an OCI bundle (runtime-spec 1.0) for one sandbox. Makes values, touches nothing.

What is attached below the root already (shared directories, volumes, the agent)
is no business of the runtime's; it adds what belongs to the container's own
namespaces: /proc, /sys, /dev.
"""

from __future__ import annotations

import resource
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

SPEC_VERSION = "1.0.2"
_UIDS = 65536
_CAPABILITIES = """
CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE
NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN
SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP
""".split()  # noqa: SIM905 — by number, as the kernel counts them
_LIMITS = {
    getattr(resource, name): name
    for name in ("RLIMIT_NOFILE", "RLIMIT_SIGPENDING", "RLIMIT_MSGQUEUE", "RLIMIT_MEMLOCK", "RLIMIT_CORE")
}
_STRICT = ("nosuid", "noexec", "nodev")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """`namespaces` maps a kind to the path of one to join; an empty path makes a new one. `capabilities` are bits.

    `first_uid` is root inside; `mapped` False says that the namespace which is joined knows. `limits` are
    (resource, soft, hard). Each of `shown` is a folder of the host's, to be seen read-only at the same path; `bound`
    maps a path inside to what is to be seen there, as it is.
    """

    root: str
    argv: Sequence[str]
    hostname: str
    first_uid: int
    namespaces: Mapping[str, str]
    capabilities: int
    limits: Iterable[tuple[int, int, int]] = ()
    hardened: bool = False
    cgroup: str = ""
    seccomp: Mapping[str, object] | None = None
    masked: Sequence[str] = ()
    read_only: Sequence[str] = ()
    mapped: bool = True
    shown: Sequence[str] = ()
    bound: Mapping[str, str] = field(default_factory=dict)


def config(bundle: Bundle) -> dict[str, object]:
    """What is to be in ``config.json``."""
    linux: dict[str, object] = {
        "namespaces": [_namespace(kind, path) for kind, path in bundle.namespaces.items()],
        "maskedPaths": list(bundle.masked),
        "readonlyPaths": list(bundle.read_only),
    }
    if bundle.cgroup:
        linux["cgroupsPath"] = bundle.cgroup
    if bundle.mapped:
        linux["uidMappings"] = linux["gidMappings"] = [
            {"containerID": 0, "hostID": bundle.first_uid, "size": _UIDS},
        ]
    if bundle.seccomp is not None:
        linux["seccomp"] = bundle.seccomp
    return {
        "ociVersion": SPEC_VERSION,
        "root": {"path": bundle.root, "readonly": False},
        "hostname": bundle.hostname,
        "process": _process(bundle),
        "mounts": [*_MOUNTS, *_binds(bundle)],
        "linux": linux,
    }


def _namespace(kind: str, path: str) -> dict[str, str]:
    return {"type": kind, "path": path} if path else {"type": kind}


def _process(bundle: Bundle) -> dict[str, object]:
    granted = capability_names(bundle.capabilities)
    return {
        "terminal": False,
        "user": {"uid": 0, "gid": 0, "umask": 0o022},
        "args": list(bundle.argv),
        "env": [],
        "cwd": "/",
        "capabilities": {
            **dict.fromkeys(("bounding", "effective", "permitted"), granted),
            "inheritable": (),
            "ambient": (),
        },
        "rlimits": [_limit(*each) for each in bundle.limits],
        "noNewPrivileges": bundle.hardened,
    }


def capability_names(bits: int) -> list[str]:
    """As runtimes know them."""
    return [f"CAP_{name}" for number, name in enumerate(_CAPABILITIES) if bits >> number & 1]


def _limit(kind: int, soft: int, hard: int) -> dict[str, object]:
    most = (1 << 64) - 1  # RLIM_INFINITY, which Python calls -1
    return {"type": _LIMITS[kind], "soft": most if soft < 0 else soft, "hard": most if hard < 0 else hard}


def _mount(destination: str, kind: str, *options: str) -> dict[str, object]:
    return {"destination": destination, "type": kind, "source": kind, "options": list(options)}


def _binds(bundle: Bundle) -> Iterator[dict[str, object]]:
    for path in bundle.shown:
        yield {"destination": path, "type": "bind", "source": path, "options": ["rbind", "ro", "nosuid", "nodev"]}
    for path, source in bundle.bound.items():
        yield {"destination": path, "type": "bind", "source": source, "options": ["rbind", "rw", "nodev"]}


_MOUNTS = (
    _mount("/proc", "proc", *_STRICT),
    _mount("/dev", "tmpfs", "nosuid", "noexec", "mode=755", "size=64k", "nr_inodes=128"),
    _mount("/dev/pts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5", "max=64"),
    _mount("/dev/shm", "tmpfs", *_STRICT, "mode=1777", "size=64m"),
    _mount("/dev/mqueue", "mqueue", *_STRICT),
    _mount("/sys", "sysfs", *_STRICT, "ro"),
)
