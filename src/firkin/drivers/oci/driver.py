"""The oci driver: boxes whose first process is started by runc or crun, for those who want an audited runtime.

Isolation tier ``oci``: one kernel for all, as ``namespaces``. What differs is who
makes namespaces and mounts, drops rights and loads the filter. Limits, disks and
networks are the same code; and before anything runs inside, what the runtime did
is looked at from outside (`carpenter`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from pathlib import Path

from firkin.drivers.boxes import host_checks
from firkin.drivers.boxes.driver import BoxDriver
from firkin.drivers.boxes.options import BoxOptions
from firkin.drivers.boxes.tier import HostKernelTier
from firkin.drivers.bundles.runtimes import RUNTIME_WITHIN_S, Containers
from firkin.drivers.ground.ground import Ground
from firkin.drivers.oci.choice import Runtime, chosen, why_none
from firkin.host import cgroups
from firkin.host.agent_bundle import agent_bundle
from firkin.host.seccomp import oci_profile
from firkin.host.stoppable import in_thread
from firkin.law.backend import Preflight
from firkin.law.capabilities import Capabilities
from firkin.law.errors import BackendFailure
from firkin.law.isolation import Isolation

NAME = "oci"


class OciDriver(BoxDriver):
    isolation = Isolation.OCI.value

    def __init__(self, state_dir: Path, options: BoxOptions, ground: Ground | None = None) -> None:
        """`ground` is shared with other drivers of the server; by default this one has its own, below `state_dir`."""
        super().__init__(state_dir, OciTier(options.more.get("runtime", "")), options, ground)

    @classmethod
    def from_settings(cls, state_dir: Path, options: Mapping[str, str]) -> OciDriver:
        """Options: those of every driver of boxes, and ``runtime``: a program to use instead of the first of runc
        and crun that works here. Raises `InvalidSpec` for anything else."""
        return cls(state_dir, BoxOptions.parse(options, NAME, "runtime"))

    @classmethod
    def declared(cls) -> Capabilities:
        """What it offers on a host that has everything: for the page of all drivers."""
        return host_checks.declared(NAME)

    @classmethod
    def on_ground(cls, ground: Ground, state_dir: Path, options: Mapping[str, str]) -> OciDriver:
        """As `from_settings`, on what the drivers of one server share."""
        return cls(state_dir, BoxOptions.parse(options, NAME, "runtime"), ground)


class OciTier(HostKernelTier):
    """Implements `Tier`."""

    name = NAME
    kind = NAME
    helper = "firkin.drivers.oci.carpenter"

    def __init__(self, wished: str, *, runtime_within_s: float = RUNTIME_WITHIN_S) -> None:
        self.runtime_within_s = runtime_within_s
        self._wished = wished
        self._containers: Containers | None = None

    def layout(self) -> cgroups.Layout:
        return cgroups.every_tree()

    async def prepare(self, state: Path, run: Path) -> Mapping[str, object]:
        runtime = await asyncio.to_thread(self._chosen)
        bundle = await in_thread(lambda _: agent_bundle(state / "agents"))
        self._containers = Containers([runtime.path], run)
        self._containers.open()
        return {
            "runtime": runtime.path,
            "runtime_root": str(run),
            "within_s": self.runtime_within_s,
            "mapped": runtime.wants_mappings,
            "agent": str(bundle.folder),
            "argv": list(bundle.argv),
            "seccomp": oci_profile(),
        }

    def _chosen(self) -> Runtime:
        runtime = chosen(self._wished)
        if runtime is None:
            raise BackendFailure("start", NAME, why_none(self._wished))
        return runtime

    def capabilities(self, layout: cgroups.Layout) -> Capabilities:
        return host_checks.capabilities(layout, NAME)

    def preflight(self, state: Path) -> Preflight:
        report = host_checks.check(state)
        if not report.ready or chosen(self._wished) is not None:
            return report
        return Preflight(False, (why_none(self._wished),))

    async def known(self) -> Collection[str]:
        return self._containers.known() if self._containers else ()

    async def forget(self, sandbox_id: str) -> None:
        if self._containers is not None:
            await self._containers.forget(sandbox_id)

    def leave(self) -> None:
        if self._containers is not None:
            self._containers.leave()
