"""The way in for Python programs: a `Runtime` over any backend."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from firkin.law.backend import BackendInfo, Preflight, SandboxBackend
from firkin.law.capabilities import Capabilities
from firkin.law.policies import Policies
from firkin.lifetimes import finish
from firkin.runtime.clients import (
    EventClient,
    FileClient,
    LogClient,
    MetricClient,
    ProcessClient,
    SandboxClient,
    SnapshotClient,
    TemplateClient,
    WarmPoolClient,
)
from firkin.runtime.volumes import VolumeClient

CLOSE_WITHIN_S = 300.0


class Runtime:
    """Clients over a backend that has been started.

    `Runtime.open` starts and stops one; the constructor takes one that somebody else owns.
    """

    def __init__(self, backend: SandboxBackend) -> None:
        self._backend = backend
        self.templates = TemplateClient(backend)
        self.sandboxes = SandboxClient(backend)
        self.processes = ProcessClient(backend)
        self.files = FileClient(backend)
        self.snapshots = SnapshotClient(backend)
        self.volumes = VolumeClient(backend)
        self.warm_pool = WarmPoolClient(backend)
        self.logs = LogClient(backend)
        self.metrics = MetricClient(backend)
        self.events = EventClient(backend)

    @classmethod
    @asynccontextmanager
    async def open(
        cls, backend: SandboxBackend, *, policies: Policies | None = None, kill_all: bool = False
    ) -> AsyncIterator[Runtime]:
        """Start `backend` under `policies` and close it at the end; with `kill_all` no sandbox outlives the block."""
        await backend.start(policies or Policies())
        try:
            yield cls(backend)
        finally:
            await finish(backend.aclose(kill_all=kill_all), within_s=CLOSE_WITHIN_S)

    @property
    def backend(self) -> SandboxBackend:
        return self._backend

    async def capabilities(self) -> Capabilities:
        return await self._backend.capabilities()

    async def preflight(self) -> Preflight:
        return await self._backend.preflight()

    async def info(self) -> BackendInfo:
        return await self._backend.info()
