"""Which accelerator machines run with: KVM where a machine was seen to boot under it, else TCG.

That /dev/kvm is there says nothing: nested virtualisation can be such that a
guest hangs at its first privileged instruction. So a machine is booted, with a
deadline, and what came of it is remembered for as long as host and QEMU are the same.
Who wants KVM and nothing else is refused where none boots: without a try, each
machine would hang until the time of whoever asked for it is over.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from firkin.law.errors import BackendFailure

_DEVICE = "/dev/kvm"
PROBE_WITHIN_S = 12.0
_NO_KVM = (
    f"qemu.accelerator is 'kvm', but this host has no KVM, or no machine booted with it within {PROBE_WITHIN_S:.0f} s;"
    " mend that or the guest kernel (qemu.kernel) and start the server anew, or let it take auto or tcg"
)


class Accelerators:
    """`wish` is ``auto``, ``kvm`` or ``tcg``. What was found is kept in `folder`."""

    def __init__(self, folder: Path, wish: str) -> None:
        self._folder = folder
        self._wish = wish
        self._chosen = "tcg" if wish == "tcg" else ""
        self._choosing = asyncio.Lock()

    async def choose(self, boots: Callable[[str], Awaitable[bool]]) -> str:
        """``kvm`` or ``tcg``; `boots` tries a machine, at most once. `BackendFailure` where KVM is wanted and fails."""
        async with self._choosing:
            if not self._chosen:
                self._chosen = "kvm" if await self._kvm_works(boots) else "tcg"
            if self._wish == "kvm" and self._chosen != "kvm":
                raise BackendFailure("boot a machine", "qemu", _NO_KVM)
            return self._chosen

    async def _kvm_works(self, boots: Callable[[str], Awaitable[bool]]) -> bool:
        if not os.access(_DEVICE, os.R_OK | os.W_OK):
            return False
        host = _host()
        memory = self._folder / "accelerator.json"
        with suppress(OSError, ValueError):
            known = json.loads(memory.read_text())
            if known.get("host") == host and (known["kvm"] or self._wish == "auto"):
                return bool(known["kvm"])
        works = await boots("kvm")
        with suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            memory.write_text(json.dumps({"host": host, "kvm": works}))
        return works


def _host() -> str:
    release = os.uname()
    return f"{release.release} {release.version} {release.machine}"
