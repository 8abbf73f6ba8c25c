"""Where a benchmark runs: the server, the tier that its sandboxes are held by, and how much to do."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from firkin.cli.bench.samples import Lifecycle, Series
from firkin.cli.bench.targets import target_of
from firkin.cli.discovery import ServerAddress, operator_of
from firkin.e2b.isolation_reports import ISOLATION_HEADER
from firkin.e2b.operators import OPERATOR_HEADER

LIFE_S = 3600
_BOX = "own namespaces, mapped root, seccomp, cgroup and disk limits; shared kernel"
ISOLATION: Mapping[str, str] = MappingProxyType(
    {
        "namespaces": _BOX,
        "memory": "none: simulated in the server's own process",
        "oci": f"{_BOX}; started by an OCI runtime",
        "gvisor": "a kernel of its own that runs as a process (gVisor), in own namespaces with limits",
        "qemu": "a virtual machine with a kernel of its own, in own namespaces with limits",
    }
)
_SYSTEMS = {"qemu": "microvm"}  # drivers whose tier has another name


@dataclass(frozen=True, slots=True, kw_only=True)
class Amounts:
    """How often each thing is done; 0 leaves a scenario out. `dirty`, `output` and `image` are in megabytes."""

    n: int = 100
    batch: int = 100
    burst: int = 100
    idle: int = 200
    alive: int = 0
    cycles: int = 0
    dirty: int = 500
    at_once: int = 100
    output: int = 256
    image: int = 180

    @property
    def slow(self) -> int:
        """Of what takes tenths of a second, a tenth as often."""
        return max(1, self.n // 10)


QUICK = Amounts(n=5, batch=10, burst=10, idle=10, alive=0, cycles=10, dirty=10, at_once=4, output=16, image=20)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """`system` is the tier's name as the figures have it. `wish` asks for another than the server's default."""

    address: ServerAddress
    template: str
    amounts: Amounts
    system: str
    isolation: str
    state_dir: Path | None = None
    wish: str = ""

    def point_sdk_here(self) -> None:
        """The official SDK reads where to go from the environment; of this process only."""
        os.environ.update(
            E2B_API_URL=self.address.url,
            E2B_SANDBOX_URL=self.address.url,
            E2B_API_KEY=self.address.api_key,
            E2B_VALIDATE_API_KEY="false",
        )

    @property
    def sdk(self) -> dict[str, Any]:
        """What `Sandbox.create` is given."""
        headers = {"headers": {ISOLATION_HEADER: self.wish}} if self.wish else {}
        return {"template": self.template, "timeout": LIFE_S, **headers}

    @property
    def new_sandbox(self) -> dict[str, Any]:
        """The same wish as the body of ``POST /sandboxes``."""
        wish = {"isolation": self.wish} if self.wish else {}
        return {"templateID": self.template, "timeout": LIFE_S, "secure": True, **wish}

    @property
    def keys(self) -> dict[str, str]:
        """The headers of the control plane; the operator's, too, where the state folder can be read."""
        operator = operator_of(self.state_dir) if self.state_dir is not None else None
        return {"X-API-Key": self.address.api_key, **({OPERATOR_HEADER: operator} if operator else {})}

    def series(
        self,
        metric: str,
        values: Sequence[float],
        lifecycle: Lifecycle,
        workload: str,
        *,
        unit: str = "ms",
        **more: Any,
    ) -> Series:
        """A series of this server's tier, with the target that the tier has for it. `more`: fields of `Series`."""
        swept = more.get("axis") or more.get("part")
        return Series(
            metric=metric,
            values=tuple(values),
            unit=unit,
            lifecycle=lifecycle,
            isolation=self.isolation,
            workload=workload,
            system=self.system,
            target=None if swept else target_of(self.system, metric),
            **more,
        )


def isolation_of(driver: str) -> str:
    return ISOLATION.get(driver, f"driver {driver or 'unknown'}")


def system_of(driver: str) -> str:
    return _SYSTEMS.get(driver, driver or "unknown")
