"""What the kernel says about a process that holds a sandbox: read from /proc, or absent with the reason.

For every driver whose sandbox shows as a process of the host: its first process,
a virtual machine's, gVisor's sentry.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any  # the fields of an `IsolationReport`, by name

from firkin.law.isolation import CapabilitySets, IdRange, NamespaceNumbers, SeccompMode

NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")
_MODES = (SeccompMode.NONE, SeccompMode.STRICT, SeccompMode.FILTER)


class IsolationFacts:
    """Collects what could be read, and for everything else why not: fields of an `IsolationReport`."""

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}
        self.unread: dict[str, str] = {}

    def read(self, name: str, work: Callable[[], object]) -> None:
        """Blocks as long as `work`. An `OSError` or `ValueError` of it is the reason, and so is that nothing came."""
        try:
            value = work()
        except (OSError, ValueError) as error:
            self.unread[name] = str(error) or type(error).__name__
            return
        if value is None or value == {} or value == ():
            self.unread[name] = "the system does not say"
        else:
            self.found[name] = value

    def absent(self, reason: str, *names: str) -> None:
        self.unread.update(dict.fromkeys(names, reason))

    def of_process(self, pid: int) -> None:
        """``uid_map``, ``capabilities``, ``seccomp``, ``no_new_privs`` and ``namespaces``. Blocks, shortly.

        Whoever asks makes sure afterwards that the process has not ended meanwhile: its number may be another's.
        """
        self.read("uid_map", lambda: uid_map(pid))
        self.read("capabilities", lambda: _capabilities(status(pid)))
        self.read("seccomp", lambda: _MODES[int(status(pid)["Seccomp"])])
        self.read("no_new_privs", lambda: status(pid)["NoNewPrivs"] == "1")
        self.read("namespaces", lambda: namespaces(pid))


def uid_map(pid: int) -> tuple[IdRange, ...]:
    """Raises `OSError`, `ValueError`."""
    lines = Path(f"/proc/{pid}/uid_map").read_text().splitlines()
    rows = [tuple(int(word) for word in line.split()) for line in lines]
    return tuple(IdRange(inside=inside, outside=outside, count=count) for inside, outside, count in rows)


def status(pid: int) -> dict[str, str]:
    """The fields of /proc/PID/status. Raises `OSError`; one that this kernel does not have is a `ValueError`."""
    text = Path(f"/proc/{pid}/status").read_text(errors="replace")
    pairs = (line.partition(":") for line in text.splitlines())
    return _Fields((name, value.strip()) for name, _, value in pairs)


def namespaces(pid: int) -> dict[str, NamespaceNumbers]:
    """Beside those of this server, which are the host's. A kind that the kernel does not have is left out."""
    found = {}
    for kind in NAMESPACES:
        if os.path.exists(f"/proc/self/ns/{kind}"):
            inside, host = os.stat(f"/proc/{pid}/ns/{kind}").st_ino, os.stat(f"/proc/self/ns/{kind}").st_ino
            found[kind] = NamespaceNumbers(inside=inside, host=host)
    return found


class _Fields(dict[str, str]):
    def __missing__(self, name: str) -> str:
        raise ValueError(f"/proc/PID/status has no {name} on this kernel")


def _capabilities(fields: dict[str, str]) -> CapabilitySets:
    return CapabilitySets(effective=int(fields["CapEff"], 16), bounding=int(fields["CapBnd"], 16))
