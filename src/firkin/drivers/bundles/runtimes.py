"""Outside runtimes: found, tried out before they are chosen, and asked to forget.

None is chosen for its name or its version: each has to run a program first, within
a deadline. Some start and then hang (runsc over a /dev/kvm that cannot do what it
promises), some refuse the machine's control groups (crun where both versions are mounted).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from firkin.drivers.bundles.workplace import PROGRAM_FOLDERS
from firkin.host import oci_bundle
from firkin.host.namespaces import sandbox_namespaces
from firkin.host.program_paths import PATH
from firkin.host.programs import run_program
from firkin.law.errors import FirkinError

RUNTIME_WITHIN_S = 20.0
"""How long a runtime may take to start a sandbox's first process."""

_PROBE_WITHIN_S = 10.0
_FORGET_WITHIN_S = 20.0
_PROBE = ("/bin/true",)
_PROBE_UID = 0x70000000
_ENVIRONMENT = {"PATH": PATH}


@dataclass(frozen=True, slots=True)
class Tried:
    """How a program went: nothing in `trouble` when all was well."""

    argv: tuple[str, ...]
    trouble: str = ""


def tried(argv: Sequence[str], *, within_s: float = _PROBE_WITHIN_S) -> Tried:
    """Run it, and end it with all that it started when it takes too long. Blocks.

    What it leaves in its folder for temporary files goes with that: `runsc do` never removes its bundle.
    """
    with (
        tempfile.TemporaryDirectory(prefix="firkin-tried-", ignore_cleanup_errors=True) as folder,
        tempfile.TemporaryFile(dir=folder) as output,
    ):
        environment = {**_ENVIRONMENT, "TMPDIR": folder}
        try:
            process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, start_new_session=True
            )
        except OSError as error:
            return Tried(tuple(argv), error.strerror or str(error))
        try:
            code = process.wait(within_s)
        except subprocess.TimeoutExpired:
            return Tried(tuple(argv), f"it did not end within {within_s:g} s")
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if code == 0:
            return Tried(tuple(argv))
        output.seek(0)
        said = output.read()[-4096:].decode(errors="replace").strip().rpartition("\n")[2]
        return Tried(tuple(argv), said[-300:] or f"it ended with {code}")


def tried_bundle(runtime: str, *, cgroup: str, mapped: bool) -> Tried:
    """Have `runtime` run a program of this machine's as sandboxes are: in control groups and most namespaces of its
    own, in a user and a network namespace that were there before. `mapped`: it is told the ids of that, too. Blocks.
    """
    try:
        held = sandbox_namespaces(_PROBE_UID)
    except OSError as error:
        return Tried((runtime,), str(error))
    try:
        with tempfile.TemporaryDirectory(prefix="firkin-probe-") as folder:
            os.chmod(folder, 0o755)
            joined = zip(("user", "network"), (f"/proc/{os.getpid()}/fd/{fd}" for fd in held), strict=True)
            spec = oci_bundle.Bundle(
                root=f"{folder}/root",
                argv=_PROBE,
                hostname="probe",
                first_uid=_PROBE_UID,
                namespaces={**dict(joined), **dict.fromkeys(("pid", "mount", "ipc", "uts"), "")},
                capabilities=0,
                hardened=True,
                cgroup=cgroup,
                shown=_programs(f"{folder}/root"),
                mapped=mapped,
            )
            return _ran(runtime, Path(folder), spec)
    finally:
        for fd in held:
            os.close(fd)


def _ran(runtime: str, folder: Path, spec: oci_bundle.Bundle) -> Tried:
    (folder / "config.json").write_text(json.dumps(oci_bundle.config(spec)))
    state = f"{folder}/state"
    result = tried([runtime, "--root", state, "run", "--bundle", str(folder), folder.name])
    if result.trouble:  # what hangs or fails may have left its container
        tried([runtime, "--root", state, "delete", "--force", folder.name])
    return result


def _programs(root: str) -> list[str]:
    """Fill the new directory `root` with links as this machine has them, and name what is to be shown there."""
    os.mkdir(root, 0o755)
    shown = []
    for path in PROGRAM_FOLDERS:
        if os.path.islink(path):
            os.symlink(os.readlink(path), f"{root}{path}")
        elif os.path.isdir(path):
            os.mkdir(f"{root}{path}")
            shown.append(path)
    for path in ("proc", "sys", "dev"):
        os.mkdir(f"{root}/{path}", 0o755)
    return shown


class Containers:
    """What a runtime has noted of its containers: a folder each in `root`, which is gone after a boot of the host."""

    def __init__(self, runtime: Sequence[str], root: Path) -> None:
        self._runtime = tuple(runtime)
        self.root = root

    def open(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)

    def known(self) -> Collection[str]:
        with suppress(FileNotFoundError):
            return [entry.name for entry in os.scandir(self.root) if entry.is_dir(follow_symlinks=False)]
        return ()

    async def forget(self, container: str) -> None:
        """The runtime removes what it made. Its notes go in any case: no process of the container's is left."""
        folder = self.root / container
        if not folder.exists():
            return
        with suppress(FirkinError, OSError):
            await run_program([*self._runtime, "--root", str(self.root), "delete", container], env=_ENVIRONMENT)
        shutil.rmtree(folder, ignore_errors=True)

    def leave(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
