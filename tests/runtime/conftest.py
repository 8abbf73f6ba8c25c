"""A runtime over the memory driver."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from firkin.drivers.memory import MemoryDriver, MemoryRootPreparer
from firkin.engine.backend import LocalBackend
from firkin.law.ids import TemplateId
from firkin.law.policies import Capacity, Policies
from firkin.law.templates import TemplateSpec
from firkin.runtime.runtime import Runtime
from firkin.runtime.sandbox import Sandbox
from tests.calm import calm


@pytest.fixture
async def runtime(tmp_path: Path) -> AsyncIterator[Runtime]:
    backend = LocalBackend(
        driver=MemoryDriver(), preparer=MemoryRootPreparer(), state_dir=tmp_path / "state", stalls=calm()
    )
    policies = Policies(capacity=Capacity(memory_floor_bytes=0, disk_floor_bytes=0))
    async with Runtime.open(backend, policies=policies, kill_all=True) as opened:
        await opened.templates.prepare(TemplateSpec.host(id=TemplateId("plain")))
        yield opened


@pytest.fixture
async def sandbox(runtime: Runtime) -> AsyncIterator[Sandbox]:
    async with await runtime.sandboxes.create("plain") as made:
        yield made
