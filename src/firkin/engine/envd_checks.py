"""Whether an image that says it brings its own envd does, and the one that is asked for.

Looked at inside a sandbox that is thrown away: the program is a stranger's, and so is
what it says of itself. Sandboxes are served by Firkin's own data plane all the same;
what is checked is what the image's owner relies on.
"""

from __future__ import annotations

import hashlib
import platform
import re
import struct

from firkin.engine.guest_files import GuestFiles
from firkin.engine.guest_processes import GuestProcesses
from firkin.law.errors import FirkinError, NotFound, TemplateFault, TemplatePrepareFailure
from firkin.law.files import ReadOptions, SandboxPath
from firkin.law.processes import Argv, Command, Exited
from firkin.law.templates import EnvdPlane, GuestArch

PLACES = ("/usr/bin/envd", "/usr/local/bin/envd")
_MOST_BYTES = 512 << 20
_ELF = b"\x7fELF"
_MACHINES = {62: GuestArch.X86_64, 183: GuestArch.AARCH64}  # e_machine (elf.h: EM_X86_64, EM_AARCH64)
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_SAYS_WITHIN_S = 10.0


async def check_envd(files: GuestFiles, processes: GuestProcesses, plane: EnvdPlane) -> None:
    """`TemplatePrepareFailure` with the fault that fits. What `plane` leaves open may be anything."""
    path = await _find(files)
    head, digest = await _content(files, path)
    _check_machine(head, plane.arch or GuestArch(platform.machine()), path)
    if plane.source is not None and digest != plane.source.sha256:
        detail = f"{path} has the SHA-256 {digest}; {plane.source.sha256} is wanted"
        raise TemplatePrepareFailure(TemplateFault.ENVD_INTEGRITY_MISMATCH, detail)
    if plane.version is not None:
        await _check_version(processes, path, plane.version)


async def _find(files: GuestFiles) -> SandboxPath:
    for place in PLACES:
        try:
            await files.stat(SandboxPath(place))
        except NotFound:
            continue
        return SandboxPath(place)
    raise TemplatePrepareFailure(TemplateFault.ENVD_MISSING, f"the image has no envd at {' or '.join(PLACES)}")


async def _content(files: GuestFiles, path: SandboxPath) -> tuple[bytes, str]:
    """Its first bytes and its digest."""
    entry, pieces = await files.open_read(path, ReadOptions())
    if entry.size_bytes > _MOST_BYTES:
        detail = f"{path} has {entry.size_bytes} bytes, which no envd has"
        raise TemplatePrepareFailure(TemplateFault.ENVD_INTEGRITY_MISMATCH, detail)
    head, whole = b"", hashlib.sha256()
    async for piece in pieces:
        head = head or piece[:64]
        whole.update(piece)
    return head, whole.hexdigest()


def _check_machine(head: bytes, wanted: GuestArch, path: str) -> None:
    found = None
    if head.startswith(_ELF) and len(head) >= 20:
        found = _MACHINES.get(struct.unpack_from("<H", head, 18)[0])
    if found is not wanted:
        what = found.value if found is not None else "no program for a machine that is known"
        raise TemplatePrepareFailure(TemplateFault.ENVD_WRONG_ARCH, f"{path} is {what}; {wanted.value} is wanted")


async def _check_version(processes: GuestProcesses, path: str, wanted: str) -> None:
    try:
        output = await processes.run(Command(mode=Argv(path, ("-version",)), timeout_s=_SAYS_WITHIN_S))
    except FirkinError as error:
        raise TemplatePrepareFailure(TemplateFault.ENVD_INIT_FAILED, f"{path} cannot be run: {error}") from error
    said = _VERSION.search((output.stdout + output.stderr)[:1000].decode(errors="replace"))
    if output.status != Exited(0) or said is None:
        raise TemplatePrepareFailure(TemplateFault.ENVD_INIT_FAILED, f"{path} does not say its version")
    if said[0] != wanted:
        detail = f"{path} says that it is version {said[0]}; {wanted} is wanted"
        raise TemplatePrepareFailure(TemplateFault.ENVD_VERSION_MISMATCH, detail)
