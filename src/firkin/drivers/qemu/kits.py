"""What every machine of this driver boots with: a kernel, an initramfs with the agent, and a known QEMU."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from firkin.drivers.qemu.inside import MODULES
from firkin.drivers.qemu.machines import PACKAGES, agent_start, program
from firkin.host.agent_bundle import PLACE, agent_bundle
from firkin.host.guest_kernels import GuestKernel, fetch_kernel, known_kernel
from firkin.host.initramfs import write_initramfs
from firkin.host.program_paths import find_program
from firkin.law.errors import BackendFailure

_ENTRY = "firkin.drivers.qemu.inside"
_START = f"from {_ENTRY} import main\nmain()\n"
_FETCH_WITHIN_S = 600.0
_FORM = "4"  # raise it when the same parts are put together, or told their clock, in another way
_log = logging.getLogger("firkin.qemu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kit:
    """`digest` is of the kernel and all that runs before and as the agent; `start` begins it."""

    kernel: Path
    initramfs: Path
    start: tuple[str, ...]
    digest: str
    qemu: str
    program: str


class Kits:
    """Makes the kit when it is first wanted, in `folder`."""

    def __init__(
        self, folder: Path, *, kernel: str = "", machine: str = os.uname().machine, foreign: Path | None = None
    ) -> None:
        """`machine` and `foreign` are for tests: a machine of another type, and a tree with its interpreter."""
        self._folder = folder
        self._machine = machine
        self._foreign = foreign
        self._given = Path(kernel) if kernel else None
        self._kit: Kit | None = None
        self._making = asyncio.Lock()

    async def kit(self, report: Callable[[str], None] = _log.info) -> Kit:
        """Raises `BackendFailure`, also when a kernel has to be fetched and cannot be."""
        async with self._making:
            if self._kit is None:
                self._kit = await self._make(report)
            return self._kit

    async def _make(self, report: Callable[[str], None]) -> Kit:
        folder = self._given or self._folder / "kernel"
        kernel = await asyncio.to_thread(known_kernel, folder)
        if kernel is None:
            async with asyncio.timeout(_FETCH_WITHIN_S):
                kernel = await fetch_kernel(folder, report, self._machine)
        return await asyncio.to_thread(self._put_together, kernel)

    def _put_together(self, kernel: GuestKernel) -> Kit:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        bundle = agent_bundle(self._folder, _ENTRY, foreign=self._foreign)
        digest = hashlib.sha256(f"{_FORM} {kernel.digest} {bundle.digest} {_START}".encode()).hexdigest()[:16]
        initramfs = self._folder / f"initramfs-{digest}.cpio"
        if not initramfs.exists():
            for old in self._folder.glob("initramfs-*"):
                old.unlink()
            with tempfile.NamedTemporaryFile("w", dir=self._folder) as start:
                start.write(_START)
                start.flush()
                trees = {PLACE: bundle.folder, f"{PLACE}/start.py": Path(start.name)}
                trees.update({f"{MODULES}/{module.name}": module for module in kernel.modules})
                folders, devices = (
                    ("dev", "proc", "sys", MODULES),
                    {"dev/urandom": (1, 9)},
                )  # Python does not start without
                write_initramfs(initramfs, trees, folders=folders, devices=devices)
        for path in (kernel.image, initramfs):
            os.chmod(path, 0o444)  # QEMU opens them anew, without a user's rights
        qemu = find_program(program(self._machine), package=PACKAGES.get(self._machine, "qemu-system"))
        return Kit(
            kernel=kernel.image,
            initramfs=initramfs,
            start=agent_start(bundle.argv),
            digest=digest,
            qemu=qemu_version(qemu),
            program=qemu,
        )


def qemu_version(path: str) -> str:
    """The first line of ``--version``. `BackendFailure` when the program does not run."""
    try:
        done = subprocess.run([path, "--version"], capture_output=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise BackendFailure("look at QEMU", path, str(error)) from error
    return done.stdout.decode(errors="replace").partition("\n")[0].strip()[:200]
