"""Warm pools where there are several tiers: what waits is of the pool's own tier, and misses are of it alone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from firkin.engine.backend import LocalBackend
from firkin.engine.refills import WarmSpare
from firkin.law.backend import WarmPoolControl
from firkin.law.isolation import Isolation
from firkin.law.network import NetworkPolicy
from firkin.law.sandboxes import SandboxFilter, SandboxInfo, SandboxSpec
from firkin.law.states import SandboxState
from firkin.law.warm_pool import WarmPoolEntry, WarmPoolSpec

from .worlds import TEMPLATE, World

POOLED = SandboxFilter(states=frozenset({SandboxState.POOLED}))
PLAIN = SandboxSpec.from_template(TEMPLATE)
ON_GVISOR = replace(PLAIN, isolation=Isolation.GVISOR)


@pytest.fixture
async def backend(tmp_path: Path) -> AsyncIterator[LocalBackend]:
    async with World(tmp_path).server(kill_all=True) as started:
        yield started


def of(depth: int, isolation: Isolation | None = None) -> WarmPoolSpec:
    return replace(WarmPoolSpec.of_depth(depth), isolation=isolation)


def pools(backend: LocalBackend) -> WarmPoolControl:
    assert backend.warm_pool is not None
    return backend.warm_pool


async def waiting(backend: LocalBackend) -> list[SandboxInfo]:
    return list(await backend.sandboxes.list(POOLED))


async def entry(backend: LocalBackend) -> WarmPoolEntry:
    [found] = (await pools(backend).status()).entries
    return found


async def test_a_pool_that_is_set_to_another_tier_ends_what_waits_on_the_old_one(backend: LocalBackend) -> None:
    await pools(backend).prewarm(TEMPLATE, of(2))
    report = await pools(backend).prewarm(TEMPLATE, of(2, Isolation.GVISOR))
    assert (report.evicted, report.ready) == (2, 2)
    assert {info.driver for info in await waiting(backend)} == {"gvisor"}
    assert (await backend.sandboxes.create(ON_GVISOR)).driver == "gvisor"
    assert (await entry(backend)).hits == 1


async def test_a_pool_that_is_set_to_another_network_policy_ends_what_has_the_old_one(backend: LocalBackend) -> None:
    await pools(backend).prewarm(TEMPLATE, of(1))
    [old] = await waiting(backend)
    report = await pools(backend).prewarm(TEMPLATE, replace(of(1), network=NetworkPolicy(internet=True)))
    assert (report.evicted, report.ready) == (1, 1)
    [new] = await waiting(backend)
    assert (new.network.internet, new.id != old.id) == (True, True)


async def test_an_entry_of_another_tier_at_the_head_of_the_shelf_hides_none_behind_it(backend: LocalBackend) -> None:
    await pools(backend).prewarm(TEMPLATE, of(1))
    node = backend._started()
    WarmSpare(node).hold("a test")
    [strange] = node.warm.get(TEMPLATE).pick(1)  # type: ignore[union-attr]  # it was set above
    await pools(backend).prewarm(TEMPLATE, of(2, Isolation.GVISOR))
    pool = node.warm.get(TEMPLATE)
    assert pool is not None
    pool.shelf.appendleft(strange)
    info = await backend.sandboxes.create(ON_GVISOR)
    assert (info.driver, info.id != strange.id, (await entry(backend)).hits) == ("gvisor", True, 1)


async def test_only_what_the_pool_of_its_tier_could_have_served_is_a_miss(backend: LocalBackend) -> None:
    await pools(backend).prewarm(TEMPLATE, of(1, Isolation.GVISOR))
    WarmSpare(backend._started()).hold("a test")
    for asked in (PLAIN, ON_GVISOR, ON_GVISOR, PLAIN, replace(ON_GVISOR, hardened=True)):
        await backend.sandboxes.create(asked)
    counted = await entry(backend)
    assert (counted.ready, counted.hits, counted.misses) == (0, 1, 1)
