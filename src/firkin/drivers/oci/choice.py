"""Which OCI runtime: the first of those installed that really runs something on this machine."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import cache

from firkin.drivers.bundles.runtimes import Tried, tried_bundle
from firkin.host.program_paths import PATH

_KNOWN = ("runc", "crun")
_PROBE_GROUP = "/firkin-probe"


@dataclass(frozen=True, slots=True)
class Runtime:
    """A program that ran a container here. `wants_mappings`: of a user namespace that it joins, too."""

    path: str
    wants_mappings: bool


@dataclass(frozen=True, slots=True)
class _Attempt:
    path: str
    mapped: bool
    result: Tried


def chosen(wished: str = "") -> Runtime | None:
    """None when there is none, or none works. Blocks for as long as a few containers take, once."""
    for attempt in _attempts(wished):
        if not attempt.result.trouble:
            return Runtime(attempt.path, attempt.mapped)
    return None


def why_none(wished: str = "") -> str:
    """One sentence, with what mends it."""
    attempts = _attempts(wished)
    if not attempts:
        return f"{wished or 'runc'} is missing; install it: apt-get install runc"
    told = "; ".join(f"{attempt.path}: {attempt.result.trouble}" for attempt in attempts if attempt.mapped)
    return f"No OCI runtime works on this machine ({told}); install another: apt-get install runc"


@cache  # of what a probe found out: a machine does not change its mind while a server runs
def _attempts(wished: str) -> tuple[_Attempt, ...]:
    found = []
    for name in (wished,) if wished else _KNOWN:
        path = shutil.which(name, path=PATH)
        if path is None:
            continue
        for mapped in (False, True):  # some releases refuse what others ask for: runc 1.1.15, and 1.1.5
            attempt = _Attempt(path, mapped, tried_bundle(path, cgroup=_PROBE_GROUP, mapped=mapped))
            found.append(attempt)
            if not attempt.result.trouble:
                return tuple(found)
    return tuple(found)
