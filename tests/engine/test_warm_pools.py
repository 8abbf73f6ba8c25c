"""Warm pools over a driver that can be made to stumble: what is short says why, what died is never handed out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from firkin.drivers.memory import MemoryDriver
from firkin.engine import leases
from firkin.engine.refills import WarmSpare
from firkin.engine.tending import LOOK_EVERY_S
from firkin.law.errors import BackendFailure, CapacityRejected, InvalidSpec, NotFound
from firkin.law.ids import TemplateId
from firkin.law.metrics import MetricFilter
from firkin.law.network import NetworkPolicy
from firkin.law.policies import Policies
from firkin.law.resources import MIB, SandboxResources
from firkin.law.sandboxes import DeleteOptions, SandboxFilter, SandboxInfo, SandboxSpec
from firkin.law.states import EndCause, SandboxState
from firkin.law.templates import HostSource, TemplateSpec
from firkin.law.warm_pool import WarmEvictionPolicy, WarmLeasePolicy, WarmPoolSpec, WarmPoolTarget
from firkin.testing.virtual_clock import VirtualClock, settle
from tests.engine.conftest import NO_FLOORS, SPEC, TEMPLATE, Engine, engine_over, eventually

POOLED = SandboxFilter(states=frozenset({SandboxState.POOLED}))


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
async def timed(tmp_path: Path, clock: VirtualClock) -> AsyncIterator[Engine]:
    async with engine_over(tmp_path / "state", clock=clock) as started:
        yield started


async def waiting(engine: Engine) -> list[SandboxInfo]:
    return sorted(await engine.backend.sandboxes.list(POOLED), key=lambda info: info.created_at)


def ready(engine: Engine) -> int:
    return engine.node.warm.ready()


async def warm(engine: Engine, depth: int, **fields: object) -> None:
    spec = replace(WarmPoolSpec.of_depth(depth), **fields)
    report = await engine.backend.warm_pool.prewarm(TEMPLATE, spec)
    assert report.ready == depth


async def test_one_that_died_on_the_shelf_is_not_handed_out_and_is_replaced(engine: Engine) -> None:
    await warm(engine, 2)
    first, second = await waiting(engine)
    await engine.driver.crash(first.id, EndCause.AGENT_DIED)
    await eventually(lambda: engine.node.roster.get(first.id) is None)
    assert (await engine.backend.sandboxes.create(SPEC)).id == second.id
    await eventually(lambda: ready(engine) == 2)


async def test_one_whose_agent_does_not_answer_is_ended_and_the_next_is_taken(engine: Engine) -> None:
    await warm(engine, 2)
    first, second = await waiting(engine)
    resident = engine.node.roster.get(first.id)
    assert resident is not None
    await engine.node.links.drop(resident)
    assert (await engine.backend.sandboxes.create(SPEC)).id == second.id
    await eventually(lambda: engine.node.roster.get(first.id) is None)
    changes = [change.cause for change in (await engine.backend.sandboxes.history(first.id)).changes]
    assert any("could not be handed out" in cause for cause in changes)


async def test_entries_that_hang_cost_a_create_one_short_wait_and_are_ended_behind_its_back(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "ANSWER_WITHIN_S", 0.05)
    monkeypatch.setattr(leases, "SUSPECT_WITHIN_S", 0.05)
    await warm(engine, 8)
    WarmSpare(engine.node).hold("a test")
    entries = await waiting(engine)
    for entry in entries[:-1]:
        await hang(engine, entry)
    async with asyncio.timeout(0.3):  # seven one after another would take longer
        made = await engine.backend.sandboxes.create(SPEC)
    assert made.id not in [entry.id for entry in entries]
    await eventually(lambda: len(list(engine.node.roster)) == 2)
    [left] = await waiting(engine)
    assert (left.id, ready(engine)) == (entries[-1].id, 1)
    history = await engine.backend.sandboxes.history(entries[0].id)
    assert history.info.end_cause is EndCause.AGENT_SILENT
    [status] = (await engine.backend.warm_pool.status()).entries
    assert (status.hits, status.misses, status.total) == (0, 1, 1)


async def hang(engine: Engine, entry: SandboxInfo) -> None:
    """Its agent takes requests and answers none."""
    resident = engine.node.roster.get(entry.id)
    assert resident is not None
    assert resident.instance is not None
    await resident.instance.freeze()


async def test_many_at_once_never_get_the_same_one(engine: Engine) -> None:
    await warm(engine, 5)
    infos = await asyncio.gather(*(engine.backend.sandboxes.create(SPEC) for _ in range(12)))
    assert len({info.id for info in infos}) == 12
    [entry] = (await engine.backend.warm_pool.status()).entries
    assert (entry.hits, entry.misses) == (5, 7)


async def test_a_pool_outlives_the_server(tmp_path: Path) -> None:
    driver = MemoryDriver()
    async with engine_over(tmp_path / "state", driver=driver, kill_all=False) as engine:
        await warm(engine, 2, eviction=WarmEvictionPolicy.NEWEST)
        before = [info.id for info in await waiting(engine)]
    async with engine_over(tmp_path / "state", driver=driver) as engine:
        assert [info.id for info in await waiting(engine)] == before
        [entry] = (await engine.backend.warm_pool.status()).entries
        assert (entry.ready, entry.spec.eviction) == (2, WarmEvictionPolicy.NEWEST)
        assert (await engine.backend.sandboxes.create(SPEC)).id == before[0]


async def test_pools_taken_away_and_set_at_the_same_time_stay_as_they_were_left(tmp_path: Path) -> None:
    names = [TemplateId(name) for name in ("a", "b", "c", "d")]
    async with engine_over(tmp_path / "state") as engine:
        pools = engine.node.warm
        for name in names:
            await engine.backend.templates.prepare(TemplateSpec.host(id=name))
        await asyncio.gather(*(pools.set({name: WarmPoolSpec.of_depth(1)}) for name in names[:3]))
        gone = [pools.set({name: WarmPoolSpec.of_depth(0)}) for name in names[:3]]
        await asyncio.gather(*gone, pools.set({names[3]: WarmPoolSpec.of_depth(2)}))
    async with engine_over(tmp_path / "state") as engine:
        assert [(pool.template_id, pool.spec.depth) for pool in engine.node.warm] == [("d", 2)]


async def test_a_caller_who_goes_away_while_a_pool_is_set_has_set_it(tmp_path: Path) -> None:
    async with engine_over(tmp_path / "state") as engine:
        setting = asyncio.create_task(engine.node.warm.set({TEMPLATE: WarmPoolSpec.of_depth(1)}))
        for _ in range(3):
            await asyncio.sleep(0)
        setting.cancel()
        await asyncio.wait([setting])
        assert [pool.spec.depth for pool in engine.node.warm] == [1]


async def test_a_pool_that_cannot_be_read_is_dropped_and_keeps_no_server_from_starting(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with engine_over(tmp_path / "state") as engine:
        await warm(engine, 1)
        text = await engine.node.records.fact("warm pools")
        assert text is not None
        spoilt = text.replace("{", '{"broken":{"depth":2.5,"min_ready":1},', 1)
        await engine.node.records.put_fact("warm pools", spoilt)
    async with engine_over(tmp_path / "state") as engine:
        assert [entry.key for entry in (await engine.backend.warm_pool.status()).entries] == [TEMPLATE]
    assert "template=broken" in caplog.text


async def test_what_could_not_be_read_again_is_refused_and_not_kept(tmp_path: Path) -> None:
    wrong = NetworkPolicy(internet=1)  # type: ignore[arg-type]
    async with engine_over(tmp_path / "state") as engine:
        with pytest.raises(InvalidSpec):
            await engine.backend.warm_pool.prewarm(TEMPLATE, replace(WarmPoolSpec.of_depth(1), network=wrong))
        with pytest.raises(InvalidSpec):
            await engine.backend.sandboxes.create(replace(SPEC, network=wrong))
        with pytest.raises(InvalidSpec):
            await engine.backend.templates.prepare(TemplateSpec(source=HostSource(), id=TEMPLATE, user=5))  # type: ignore[arg-type]
    async with engine_over(tmp_path / "state") as engine:
        assert not engine.node.warm.wanted()
        assert await engine.leftovers() == []


async def test_what_died_with_the_machine_is_forgotten_and_made_again(tmp_path: Path) -> None:
    async with engine_over(tmp_path / "state", kill_all=False) as engine:
        await warm(engine, 1)
        [lost] = await waiting(engine)
    async with engine_over(tmp_path / "state") as engine:
        await eventually(lambda: ready(engine) == 1)
        assert [info.id for info in await waiting(engine)] != [lost.id]
        assert list(await engine.backend.sandboxes.list(SandboxFilter())) == []


async def test_what_a_pool_cannot_make_is_told_and_tried_again_later(timed: Engine, clock: VirtualClock) -> None:
    timed.driver.faults.fail_next_boot(BackendFailure("boot", "memory", "a test wants it"))
    report = await timed.backend.warm_pool.prewarm(TEMPLATE, WarmPoolSpec.of_depth(1))
    assert (report.created, report.ready) == (0, 0)
    assert report.failures
    [entry] = (await timed.backend.warm_pool.status()).entries
    assert entry.failure
    assert entry.failure in report.failures[0]
    await clock.advance(LOOK_EVERY_S * 2)
    await eventually(lambda: ready(timed) == 1)
    [entry] = (await timed.backend.warm_pool.status()).entries
    assert (entry.ready, entry.failure) == (1, "")


async def test_more_than_there_is_room_for_is_told_and_takes_nothing_from_anybody(tmp_path: Path) -> None:
    policies = Policies(capacity=replace(NO_FLOORS, max_sandboxes=3))
    async with engine_over(tmp_path / "state", policies=policies) as engine:
        mine = await engine.backend.sandboxes.create(SPEC)
        report = await engine.backend.warm_pool.prewarm(TEMPLATE, WarmPoolSpec.of_depth(5))
        assert (report.created, report.ready, len(report.failures)) == (2, 2, 1)
        assert (await engine.backend.sandboxes.inspect(mine.id)).state is SandboxState.RUNNING


async def test_what_was_put_off_for_want_of_room_is_made_as_soon_as_there_is_some(
    tmp_path: Path, clock: VirtualClock
) -> None:
    policies = Policies(capacity=replace(NO_FLOORS, max_sandboxes=3))
    async with engine_over(tmp_path / "state", policies=policies, clock=clock) as engine:
        mine = [await engine.backend.sandboxes.create(SPEC) for _ in range(2)]
        await engine.backend.warm_pool.prewarm(TEMPLATE, WarmPoolSpec.of_depth(2))
        for _ in range(8):  # it is tried again later and later
            await clock.advance(20)
            await settle()
        assert ready(engine) == 1
        await engine.backend.sandboxes.delete(mine.pop().id, DeleteOptions(force=True))
        await clock.advance(1)
        await eventually(lambda: ready(engine) == 2)
        await engine.backend.warm_pool.prewarm(TEMPLATE, WarmPoolSpec.of_depth(4))
        for _ in range(8):
            await clock.advance(20)
            await settle()
        await engine.backend.node.limit(replace(policies.capacity, max_sandboxes=10))
        await clock.advance(1)
        await eventually(lambda: ready(engine) == 4)


@pytest.mark.parametrize(("asked_mib", "left"), [(6 * 1024, 2), (16 * 1024, 4)], ids=["fits", "never fits"])
async def test_who_asks_for_more_memory_than_is_left_costs_only_what_has_to_go(
    tmp_path: Path, asked_mib: int, left: int
) -> None:
    """Entries have 1 GiB each, of 8 in all."""
    each = SandboxResources(memory_bytes=1024 * MIB)
    capacity = replace(NO_FLOORS, max_memory_bytes=8 * 1024 * MIB)
    async with engine_over(tmp_path / "state", policies=Policies(capacity=capacity, default_resources=each)) as engine:
        await warm(engine, 4)
        WarmSpare(engine.node).hold("a test")
        spec = replace(SPEC, resources=replace(each, memory_bytes=asked_mib * MIB))
        if left == 4:
            with pytest.raises(CapacityRejected):
                await engine.backend.sandboxes.create(spec)
        else:
            await engine.backend.sandboxes.create(spec)
        assert ready(engine) == left
        assert (await engine.backend.node.status()).evicted == 4 - left


async def test_what_is_kept_ready_is_measured_against_processors_too_and_hits_are_counted(tmp_path: Path) -> None:
    policies = Policies(
        capacity=replace(NO_FLOORS, max_vcpus=8), default_resources=SandboxResources(vcpus=2, memory_bytes=64 * MIB)
    )
    async with engine_over(tmp_path / "state", policies=policies) as engine:
        await warm(engine, 2)
        WarmSpare(engine.node).hold("a test")
        await engine.backend.sandboxes.create(SPEC)
        await engine.node.pressure.step()
        assert engine.node.pressure.spare_utilization_pct() == pytest.approx(100 * 2 / 6)
        await engine.backend.sandboxes.create(SPEC)
        await engine.backend.sandboxes.create(SPEC)
        assert engine.backend.metrics is not None
        figures = {one.name: one.value for one in await engine.backend.metrics.snapshot(MetricFilter())}
        assert figures["autoscale.ready_queue_hit_rate_pct"] == pytest.approx(100 * 2 / 3)


async def test_a_template_made_anew_is_not_served_from_its_old_files(engine: Engine) -> None:
    await warm(engine, 1)
    [old] = await waiting(engine)
    await engine.backend.templates.prepare(TemplateSpec(source=HostSource(), id=TEMPLATE, env={"NEW": "1"}))
    info = await engine.backend.sandboxes.create(SPEC)
    assert info.id != old.id
    await eventually(lambda: engine.node.roster.get(old.id) is None)
    await eventually(lambda: ready(engine) == 1)


async def test_another_policy_and_other_limits_are_put_in_force_on_the_way(engine: Engine) -> None:
    await warm(engine, 1)
    [entry] = await waiting(engine)
    asked = replace(entry.resources, memory_bytes=256 * MIB)
    spec = replace(SPEC, network=NetworkPolicy(internet=True), resources=asked)
    info = await engine.backend.sandboxes.create(spec)
    assert (info.id, info.network.internet, info.resources) == (entry.id, True, asked)
    assert engine.node.admission.memory_bytes >= 256 * MIB


async def test_what_no_entry_can_become_is_made_and_counts_as_no_miss_of_theirs(engine: Engine) -> None:
    await warm(engine, 1)
    [entry] = await waiting(engine)
    bigger = replace(entry.resources, disk_bytes=entry.resources.disk_bytes * 2)
    infos = [
        await engine.backend.sandboxes.create(replace(SPEC, resources=bigger)),
        await engine.backend.sandboxes.create(replace(SPEC, hardened=True)),
    ]
    assert entry.id not in [info.id for info in infos]
    [status] = (await engine.backend.warm_pool.status()).entries
    assert (status.ready, status.hits, status.misses) == (1, 0, 0)


async def test_a_refused_create_is_no_miss(tmp_path: Path) -> None:
    policies = Policies(capacity=replace(NO_FLOORS, max_sandboxes=2))
    async with engine_over(tmp_path / "state", policies=policies) as engine:
        await warm(engine, 2)
        outcomes = await asyncio.gather(
            *(engine.backend.sandboxes.create(SPEC) for _ in range(9)), return_exceptions=True
        )
        with pytest.raises(CapacityRejected):
            await engine.backend.warm_pool.checkout(TEMPLATE, WarmLeasePolicy.REQUIRE_READY)
        assert sum(isinstance(outcome, CapacityRejected) for outcome in outcomes) == 7
        [entry] = (await engine.backend.warm_pool.status()).entries
        assert (entry.hits, entry.misses) == (2, 0)


@pytest.mark.thorough
async def test_nothing_is_made_while_refilling_is_held(timed: Engine, clock: VirtualClock) -> None:
    spare = WarmSpare(timed.node)
    await warm(timed, 2)
    spare.hold("memory is short")
    await timed.backend.sandboxes.create(SPEC)
    await clock.advance(60)
    [entry] = (await timed.backend.warm_pool.status()).entries
    assert (entry.ready, entry.held) == (1, "memory is short")
    spare.resume()
    await clock.advance(60)
    await eventually(lambda: (spare.ready(), spare.wanted()) == (2, 2))


async def test_what_is_above_the_least_gives_way_first(engine: Engine) -> None:
    await engine.backend.templates.prepare(TemplateSpec.host(id=TemplateId("other")))
    targets = [
        WarmPoolTarget(TEMPLATE, WarmPoolSpec.of_depth(2)),
        WarmPoolTarget(TemplateId("other"), WarmPoolSpec(depth=2, min_ready=0)),
    ]
    assert (await engine.backend.warm_pool.maintain(targets)).created == 4
    spare = WarmSpare(engine.node)
    spare.hold("a test")
    assert await spare.give_up(2, because="memory is short") == 2
    ready_by_key = {str(entry.key): entry.ready for entry in (await engine.backend.warm_pool.status()).entries}
    assert ready_by_key == {"plain": 2, "other": 0}
    assert await spare.give_up(9, because="memory is short") == 2


async def test_evicting_counts_and_the_pool_fills_again_after_a_while(timed: Engine, clock: VirtualClock) -> None:
    await warm(timed, 3)
    newest = (await waiting(timed))[-1]
    report = await timed.backend.warm_pool.evict((await timed.backend.warm_pool.status()).entries[0].key, 2)
    assert (report.evicted, report.ready) == (2, 1)
    assert [info.id for info in await waiting(timed)] == [newest.id]
    await clock.advance(LOOK_EVERY_S * 2)
    await eventually(lambda: ready(timed) == 3)


async def test_what_is_made_ahead_waits_for_those_who_need_something_now(timed: Engine, clock: VirtualClock) -> None:
    await warm(timed, 1)
    await timed.backend.sandboxes.create(SPEC)
    await settle()
    assert ready(timed) == 0
    await clock.advance(1)
    await eventually(lambda: ready(timed) == 1)


async def test_a_caller_who_goes_away_leaves_nothing_half_his(engine: Engine) -> None:
    await warm(engine, 1)
    [entry] = await waiting(engine)
    resident = engine.node.roster.get(entry.id)
    assert resident is not None
    async with resident.lock:
        create = asyncio.ensure_future(engine.backend.sandboxes.create(SPEC))  # noqa: TID251 — cancelled here
        await settle()
        create.cancel()
        with pytest.raises(asyncio.CancelledError):
            await create
    await eventually(lambda: engine.node.roster.get(entry.id) is None)
    await eventually(lambda: ready(engine) == 1)
    changes = (await engine.backend.sandboxes.history(entry.id)).changes
    assert any("whoever asked for it went away" in change.cause for change in changes)


async def test_a_leased_one_pins_its_template_and_a_waiting_one_does_not(engine: Engine) -> None:
    await warm(engine, 1)
    lease = await engine.backend.warm_pool.checkout(TEMPLATE, WarmLeasePolicy.REQUIRE_READY)
    assert engine.node.templates._uses.users(engine.node.templates.records()[0].directory) == 1
    await engine.backend.sandboxes.delete(lease.sandbox_id, DeleteOptions(force=True))
    await engine.backend.templates.delete(TEMPLATE)
    with pytest.raises(NotFound):
        await engine.backend.sandboxes.create(SPEC)
    await eventually(lambda: not engine.node.warm.wanted())
    assert await engine.leftovers() == []


async def test_the_room_of_what_waits_becomes_the_sandboxs(tmp_path: Path) -> None:
    policies = Policies(capacity=replace(NO_FLOORS, max_sandboxes=1), default_resources=SandboxResources(vcpus=1))
    async with engine_over(tmp_path / "state", policies=policies) as engine:
        await warm(engine, 1)
        await engine.backend.sandboxes.create(SandboxSpec.from_template(TEMPLATE))
        assert (engine.node.admission.sandboxes, engine.node.admission.vcpus) == (1, 1)
        with pytest.raises(CapacityRejected):
            await engine.backend.warm_pool.checkout(TEMPLATE, WarmLeasePolicy.REQUIRE_READY)
