"""The gvisor driver: boxes in which runsc runs a kernel of its own, so that programs inside never reach the host's.

Isolation tier ``gvisor``. Limits, disks and networks are those of the other drivers of
boxes, and hold the sentry and the gofer. The sentry takes the slot's network over,
so a policy by address holds outside of it, whatever it does. Captures are of files:
runsc's checkpoint ends a sandbox that it cannot write down (docs/isolation.md).
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path

from firkin.drivers.boxes import host_checks
from firkin.drivers.boxes.driver import BoxDriver
from firkin.drivers.boxes.links import AgentLink
from firkin.drivers.boxes.options import BoxOptions
from firkin.drivers.boxes.tier import Ahead
from firkin.drivers.bundles.runtimes import RUNTIME_WITHIN_S
from firkin.drivers.ground.ground import Ground
from firkin.drivers.ground.slots import Slot
from firkin.drivers.gvisor.calls import INSIDE, CallingAgent, make_folder
from firkin.drivers.gvisor.choice import Runsc, runsc
from firkin.guest.calling import ENTRY
from firkin.host import cgroups
from firkin.host.agent_bundle import agent_bundle
from firkin.host.isolation_facts import IsolationFacts
from firkin.host.seccomp import sentry_profile
from firkin.host.stoppable import in_thread
from firkin.host.syscalls import open_tree
from firkin.law.backend import Preflight
from firkin.law.capabilities import Capabilities
from firkin.law.errors import BackendFailure
from firkin.law.isolation import Isolation

NAME = "gvisor"


class GvisorDriver(BoxDriver):
    isolation = Isolation.GVISOR.value

    def __init__(self, state_dir: Path, options: BoxOptions, ground: Ground | None = None) -> None:
        """`ground` is shared with other drivers of the server; by default this one has its own, below `state_dir`."""
        super().__init__(state_dir, GvisorTier(options.more.get("platform", "")), options, ground)

    @classmethod
    def from_settings(cls, state_dir: Path, options: Mapping[str, str]) -> GvisorDriver:
        """Options: those of every driver of boxes, and ``platform``: one of runsc's, instead of the first that works
        here. Raises `InvalidSpec` for anything else."""
        return cls(state_dir, BoxOptions.parse(options, NAME, "platform"))

    @classmethod
    def declared(cls) -> Capabilities:
        """What it offers on a host that has everything: for the page of all drivers."""
        return host_checks.declared(NAME)

    @classmethod
    def on_ground(cls, ground: Ground, state_dir: Path, options: Mapping[str, str]) -> GvisorDriver:
        """As `from_settings`, on what the drivers of one server share."""
        return cls(state_dir, BoxOptions.parse(options, NAME, "platform"), ground)


class GvisorTier:
    """Implements `Tier`."""

    name = NAME
    kind = NAME
    helper = "firkin.drivers.gvisor.carpenter"
    has_hosts_loopback = False
    ahead = Ahead.WHOLE
    resizes = False  # its kernel was told its memory and processors when it began

    def __init__(self, platform: str, *, runtime_within_s: float = RUNTIME_WITHIN_S) -> None:
        self.runtime_within_s = runtime_within_s
        self._platform = platform
        self._notes: Path | None = None

    def layout(self) -> None:
        return None

    async def prepare(self, state: Path, run: Path) -> Mapping[str, object]:
        runtime = await asyncio.to_thread(self._found)
        bundle = await in_thread(lambda _: agent_bundle(state / "agents", ENTRY))
        run.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._notes = run
        return {
            "runtime": runtime.path,
            "flags": list(runtime.flags),
            "runtime_root": str(run),
            "within_s": self.runtime_within_s,
            "agent": str(bundle.folder),
            "argv": list(bundle.argv),
            "seccomp": sentry_profile(),
        }

    def _found(self) -> Runsc:
        found = runsc(self._platform)
        if found.trouble:
            raise BackendFailure("start", NAME, found.trouble)
        return found

    def capabilities(self, layout: cgroups.Layout) -> Capabilities:
        return host_checks.capabilities(layout, NAME)

    def preflight(self, state: Path) -> Preflight:
        report = host_checks.check(state)
        if not report.ready:
            return report
        found = runsc(self._platform)
        if found.trouble:
            return Preflight(False, (found.trouble,))
        return Preflight(True, (found.warning,) if found.warning else ())

    def listen(self, path: str) -> tuple[int, AgentLink]:
        folder = Path(path)
        make_folder(folder)
        link = CallingAgent(folder)
        try:
            return open_tree(str(folder / INSIDE)), link
        except OSError:
            link.close()
            raise

    def link(self, path: str) -> AgentLink:
        return CallingAgent(Path(path))

    def facts(self, pid: int, found: IsolationFacts) -> str:
        """The sentry says which kernel it plays only inside; from here it cannot be read."""
        found.absent("the sentry answers system calls; what it calls itself is told inside only", "kernel_release")
        found.read("accelerator", lambda: _platform_of(pid))
        return "gVisor's sentry"

    def root(self, pid: int, members: Collection[int]) -> int:
        """The gofer's: it serves the files, and the sentry has none."""
        for member in members:
            with suppress(OSError):
                root = os.open(f"/proc/{member}/root", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                if os.path.isdir(f"/proc/self/fd/{root}/.firkin"):
                    return root
                os.close(root)
        raise FileNotFoundError("the process that serves the sandbox's files is not there")

    def used(self, slot: Slot) -> None:
        """The sentry took the addresses off the slot's interface: the next gets a new one."""
        slot.close()

    async def known(self) -> Collection[str]:
        """Their names are after the last colon: ``NAME_sandbox:NAME.state``."""
        with suppress(FileNotFoundError):
            if self._notes is not None:
                return {name.partition("_sandbox:")[0] for name in os.listdir(self._notes) if "_sandbox:" in name}
        return ()

    async def forget(self, sandbox_id: str) -> None:
        """`runsc delete` would wait nearly two seconds for processes that are gone already. All that is left of them,
        with control groups that are ours, are these notes."""
        if self._notes is not None:
            for path in self._notes.glob(f"{sandbox_id}_sandbox:*"):
                path.unlink(missing_ok=True)

    def leave(self) -> None:
        if self._notes is not None:
            shutil.rmtree(self._notes, ignore_errors=True)


def _platform_of(pid: int) -> str:
    """As the sentry was started with, ``--platform=NAME``; runsc leaves out what it takes by itself, and a sentry
    that traces its children is on that one."""
    for word in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
        name, _, value = word.partition(b"=")
        if name.lstrip(b"-") == b"platform":
            return value.decode()
    return "ptrace" if any(_traced(task) for task in Path(f"/proc/{pid}/task").iterdir()) else ""


def _traced(task: Path) -> bool:
    for child in (task / "children").read_text().split():
        if "TracerPid:\t0\n" not in Path(f"/proc/{child}/status").read_text():
            return True
    return False
