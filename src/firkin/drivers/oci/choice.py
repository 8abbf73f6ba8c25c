"""Which OCI runtime: the first of those installed that really runs something on this machine."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache

from firkin.drivers.bundles.runtimes import Tried, tried_bundle
from firkin.host.program_paths import PATH

_KNOWN = ("runc", "crun")
_VERSION_WITHIN_S = 10.0
_PROBE_GROUP = "/firkin-probe"
_RUNC_READS_MAPPINGS = (1, 2)  # from there on it refuses them beside a user namespace that it is to join


@dataclass(frozen=True, slots=True)
class Runtime:
    """A program that ran a container here. `wants_mappings`: of a user namespace that it joins, too."""

    path: str
    version: tuple[int, ...]

    @property
    def wants_mappings(self) -> bool:
        return not (self.path.endswith("runc") and self.version >= _RUNC_READS_MAPPINGS)


def chosen(wished: str = "") -> Runtime | None:
    """None when there is none, or none works. Blocks for as long as a container takes, once."""
    for path, result in _attempts(wished):
        if not result.trouble:
            return Runtime(path, _version(path))
    return None


def why_none(wished: str = "") -> str:
    """One sentence, with what mends it."""
    attempts = _attempts(wished)
    if not attempts:
        return f"{wished or 'runc'} is missing; install it: apt-get install runc"
    told = "; ".join(f"{path}: {result.trouble}" for path, result in attempts)
    return f"No OCI runtime works on this machine ({told}); install another: apt-get install runc"


@cache  # of what a probe found out: a machine does not change its mind while a server runs
def _attempts(wished: str) -> tuple[tuple[str, Tried], ...]:
    found = []
    for name in (wished,) if wished else _KNOWN:
        path = shutil.which(name, path=PATH)
        if path is None:
            continue
        result = tried_bundle(path, cgroup=_PROBE_GROUP)
        found.append((path, result))
        if not result.trouble:
            break
    return tuple(found)


def _version(path: str) -> tuple[int, ...]:
    """Empty when it does not say."""
    try:
        said = subprocess.run([path, "--version"], capture_output=True, timeout=_VERSION_WITHIN_S, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    numbers = re.search(rb"version (\d+)\.(\d+)", said)
    return tuple(int(number) for number in numbers.groups()) if numbers else ()
