"""The root of a carpenter: an empty tmpfs, and of the host's only what an OCI runtime needs.

Children make their sandbox's mounts in a copy of it, in a mount namespace of
their own. So these are in no mount table of the host's, and go with the last
process that uses them, whoever was killed before.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable

from firkin.host.syscalls import MS_BIND, MS_RDONLY, MS_REC, MS_REMOUNT, mount

AGENT = "/agent"
BUNDLES = "/bundles"
_KERNEL = ("/proc", "/sys", "/dev")
PROGRAM_FOLDERS = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_LINKER_CACHE = "/etc/ld.so.cache"


def furnish(scratch: str, *, agent: str, folders: Iterable[str], program: str) -> None:
    """Bring what is needed into the tmpfs at `scratch`: the agent's bundle as a copy, whose place on the host
    nobody inside is to learn; `folders` to write in; and the folder of `program` where it is an unusual one."""
    for path in _KERNEL:
        _show(scratch, path)
    for path in PROGRAM_FOLDERS:
        if os.path.islink(path):
            os.symlink(os.readlink(path), f"{scratch}{path}")
        elif os.path.isdir(path):
            _show(scratch, path, read_only=True)
    if not program.startswith(tuple(f"{path}/" for path in PROGRAM_FOLDERS)):
        _show(scratch, os.path.dirname(program), read_only=True)
    for path in folders:
        _show(scratch, path)
    for path in ("/tmp", BUNDLES, "/etc"):
        os.makedirs(f"{scratch}{path}", mode=0o700, exist_ok=True)
    if os.path.exists(_LINKER_CACHE):
        shutil.copyfile(_LINKER_CACHE, f"{scratch}{_LINKER_CACHE}")
    shutil.copytree(agent, f"{scratch}{AGENT}")
    os.mkdir(f"{scratch}{AGENT}/host", 0o755)  # where an agent that calls finds its host; empty for others


def _show(scratch: str, path: str, *, read_only: bool = False) -> None:
    place = f"{scratch}{path}"
    os.makedirs(place, exist_ok=True)
    mount(path, place, None, MS_BIND | MS_REC)
    if read_only:
        mount("none", place, None, MS_BIND | MS_REMOUNT | MS_RDONLY)
