"""One real server for a module that asks for it, and each of its tiers in turn."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from e2b import Sandbox
from firkin.host.guest_kernels import fetch_kernel, known_kernel
from tests.e2b.lives import made
from tests.qemu.homes import KERNEL
from tests.qemu.small_roots import small_root

from .served import TIERS, Served


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with tempfile.TemporaryDirectory(prefix="firkin-tiers-", dir="/var/tmp") as folder:
        root = Path(folder) / "root"
        root.mkdir()
        asyncio.run(_prepared(root))
        options = ("ready_slots=3", "qemu.accelerator=tcg", f"qemu.kernel={KERNEL}")
        served = Served(Path(folder) / "state", options)
        try:
            served.start()
            served.firkin("template", "prepare", str(root), "--id", "base")
            yield served
        finally:
            _kill_all(served)
            served.end()


async def _prepared(root: Path) -> None:
    if known_kernel(KERNEL) is None:
        await fetch_kernel(KERNEL, print)
    await small_root(root)


def _kill_all(served: Served) -> None:
    """What a failed test left: it would outlive the server."""
    if served.process is not None:
        for info in Sandbox.list(**served.sdk()).next_items():
            Sandbox.kill(info.sandbox_id, **served.sdk())


@pytest.fixture(params=TIERS)
def tier(request: pytest.FixtureRequest, served: Served) -> str:
    if reason := served.lacking(request.param):
        pytest.skip(reason)
    return str(request.param)


@pytest.fixture
def sdk(served: Served, tier: str) -> dict[str, Any]:
    return served.sdk(tier)


@pytest.fixture
def sandbox(sdk: dict[str, Any]) -> Iterator[Sandbox]:
    with made(sdk) as running:
        yield running


@pytest.fixture
def http(served: Served) -> Iterator[httpx.Client]:
    with served.http() as client:
        yield client


@pytest.fixture
def microvm(served: Served) -> dict[str, Any]:
    if reason := served.lacking("microvm"):
        pytest.skip(reason)
    return served.sdk("microvm")
