"""The line: fair, bounded, and left at once by whoever goes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firkin.engine.admission import Admission, Reservation
from firkin.engine.backpressure import LONGEST_RETRY_S, Line, answer, retry_after_s
from firkin.engine.launches import Launches, launches_at_once
from firkin.engine.spare import SpareRoom
from firkin.engine.waiting_line import Ticket, WaitingLine, Wish
from firkin.law.errors import CapacityRejected, RejectReason
from firkin.law.policies import Capacity
from firkin.law.pressure import AdmitNow, BackpressurePolicy, Queue, Reject
from firkin.law.resources import GIB, MIB, SandboxResources
from firkin.lifetimes import Children, children
from firkin.testing.virtual_clock import VirtualClock, settle
from tests.engine.test_admission import Gauge, Shelf

POLICY = BackpressurePolicy(max_pending=4, max_wait_s=5.0)


class Door:
    """A line before a machine for so many sandboxes."""

    def __init__(self, own: Children, *, most: int = 1, policy: BackpressurePolicy = POLICY) -> None:
        self.clock, self.spare, self._own = VirtualClock(), SpareRoom(), own
        self.gauge = Gauge()
        self.admission = Admission(Capacity(max_sandboxes=most), self.gauge)
        self.line = WaitingLine(self.admission, self.spare, clock=self.clock, children=own, policy=policy)
        self.served: list[str] = []

    def wish(self, resources: SandboxResources | None = None) -> Wish:
        wanted = resources or SandboxResources()
        return Wish("create a sandbox", wanted, lambda: self.admission.reserve(wanted))

    async def come(self, name: str, owner: str = "", ticket: Ticket | None = None) -> asyncio.Task[Reservation]:
        async def wait() -> Reservation:
            reservation = await self.line.admitted(self.wish(), ticket or Ticket(owner))
            self.served.append(name)
            return reservation

        task = self._own.start(wait(), name=name)
        await settle(3)
        return task


@pytest.fixture
async def own() -> AsyncIterator[Children]:
    with suppress(CapacityRejected):  # callers that were refused are children, too
        async with children() as started:
            yield started


async def test_room_is_given_in_the_order_of_asking(own: Children) -> None:
    door = Door(own)
    held = (await (await door.come("a"))), [await door.come(name) for name in "bcd"]
    reservation = held[0]
    for waiter in held[1]:
        reservation.release()
        await settle(3)
        reservation = await waiter
    assert door.served == ["a", "b", "c", "d"]
    assert door.line.status().admitted_after_waiting == 3


async def test_tenants_are_served_by_turns(own: Children) -> None:
    door = Door(own)
    room = await (await door.come("first"))
    waiters = [await door.come(f"greedy{number}", "greedy") for number in range(3)]
    waiters.append(await door.come("modest", "modest"))
    for _ in range(4):
        room.release()
        await settle(3)
        room = next(task.result() for task in waiters if task.done() and task.result().held)
    assert door.served == ["first", "greedy0", "modest", "greedy1", "greedy2"]


async def test_a_full_line_makes_a_place_for_who_has_none(own: Children) -> None:
    door = Door(own)
    await (await door.come("first"))
    greedy = [await door.come(f"greedy{number}", "greedy") for number in range(4)]
    one_more = await door.come("greedy4", "greedy")
    with pytest.raises(CapacityRejected) as refused:
        await one_more
    assert refused.value.refusal.reason is RejectReason.QUEUE_FULL
    await door.come("modest", "modest")
    with pytest.raises(CapacityRejected) as pushed_out:
        await greedy[3]
    assert pushed_out.value.refusal.reason is RejectReason.QUEUE_FULL
    assert len(door.line) == 4


async def test_nobody_waits_longer_than_is_allowed(own: Children) -> None:
    door = Door(own)
    await (await door.come("first"))
    waiter = await door.come("second")
    await door.clock.advance(4.9)
    assert not waiter.done()
    await door.clock.advance(0.2)
    with pytest.raises(CapacityRejected) as refused:
        await waiter
    refusal = refused.value.refusal
    assert (refusal.reason, refusal.position, refusal.waited_s) == (RejectReason.DEADLINE_PASSED, 1, 5.0)
    assert refusal.retry_after_s >= 1
    assert "5.0 s" in str(refused.value)


async def test_of_many_that_waited_in_vain_each_is_told_its_own_place_and_comes_again_in_that_order(
    own: Children,
) -> None:
    door = Door(own)
    first = await (await door.come("first"))
    lucky = await door.come("lucky")
    late = [await door.come(name) for name in "abc"]
    first.release()
    await settle(3)
    assert lucky.done()
    await door.clock.advance(5.1)
    await settle(5)
    refusals = []
    for waiter in late:
        with pytest.raises(CapacityRejected) as refused:
            await waiter
        refusals.append(refused.value.refusal)
    assert [refusal.position for refusal in refusals] == [1, 2, 3]
    again = [refusal.retry_after_s for refusal in refusals]
    assert again == sorted(again)


async def test_places_are_counted_by_turns_of_tenants(own: Children) -> None:
    door = Door(own)
    await (await door.come("first"))
    greedy = [await door.come(f"greedy{number}", "greedy") for number in range(3)]
    modest = await door.come("modest", "modest")
    await door.clock.advance(5.1)
    places = []
    for waiter in (*greedy, modest):
        with pytest.raises(CapacityRejected) as refused:
            await waiter
        places.append(refused.value.refusal.position)
    assert places == [1, 2, 3, 2]


async def test_a_cancelled_caller_leaves_at_once_and_what_it_got_in_that_moment_goes_on(own: Children) -> None:
    door = Door(own)
    room = await (await door.come("first"))
    second, third, fourth = [await door.come(name) for name in ("second", "third", "fourth")]
    second.cancel()
    await settle(3)
    assert len(door.line) == 2
    room.release()  # third's turn, who leaves in the same moment
    third.cancel()
    await settle(5)
    assert fourth.done()
    assert door.admission.sandboxes == 1
    fourth.result().release()
    assert door.admission.sandboxes == 0
    assert door.line.status().left == 2


async def test_a_withdrawn_ticket_is_no_wait(own: Children) -> None:
    door, ticket, hurry = Door(own), Ticket(), asyncio.Event()
    await (await door.come("first"))
    waiter = await door.come("second", ticket=ticket)
    ticket.withdraw()
    with pytest.raises(CapacityRejected):
        await waiter
    hurried = await door.come("third", ticket=Ticket(hurry=hurry))
    hurry.set()
    await settle(5)
    with pytest.raises(CapacityRejected):
        await hurried
    assert len(door.line) == 0


async def test_what_is_ready_gives_way_although_no_queue_is_allowed(own: Children) -> None:
    door = Door(own, most=0, policy=BackpressurePolicy(max_pending=0, max_wait_s=0))
    door.admission.capacity = Capacity(max_sandboxes=1)
    shelf = Shelf(1, 1)
    held = door.admission.reserve(SandboxResources())

    async def give_up(count: int, *, because: str) -> int:
        held.release()
        shelf._ready = 0
        return 1

    shelf.give_up = give_up  # type: ignore[method-assign]
    door.spare.join(shelf)
    await (await door.come("active"))
    refused = await door.come("another")
    with pytest.raises(CapacityRejected) as error:
        await refused
    assert error.value.refusal.reason is RejectReason.NO_ROOM


async def test_a_closed_line_sends_everybody_home(own: Children) -> None:
    door = Door(own)
    await (await door.come("first"))
    waiter = await door.come("second")
    door.line.close()
    late = await door.come("third")
    for each in (waiter, late):
        with pytest.raises(CapacityRejected) as refused:
            await each
        assert refused.value.refusal.reason is RejectReason.SHUTTING_DOWN


async def test_a_raised_limit_serves_at_once(own: Children) -> None:
    door = Door(own)
    await (await door.come("first"))
    waiter = await door.come("second")
    door.admission.capacity = replace(door.admission.capacity, max_sandboxes=2)
    await settle(3)
    assert waiter.done()


shortages = st.builds(
    lambda limit, requested, name: CapacityRejected("create", name, requested=requested, available=0, limit=limit),
    st.none() | st.integers(0, 100),
    st.integers(1, 200),
    st.sampled_from(["sandboxes", "memory", "vcpus", "free memory on the host"]),
)
lines = st.builds(
    Line,
    now_s=st.floats(0, 1e6),
    waiting=st.integers(0, 500),
    spare=st.integers(0, 10),
    pressed=st.booleans(),
    closed=st.booleans(),
)
policies = st.builds(BackpressurePolicy, max_pending=st.integers(0, 300), max_wait_s=st.floats(0, 100))


@pytest.mark.thorough
@given(st.none() | shortages, lines, policies)
def test_every_wish_is_admitted_queued_within_bounds_or_rejected(
    short: CapacityRejected | None, line: Line, policy: BackpressurePolicy
) -> None:
    said = answer(short, line, policy)
    match said:
        case AdmitNow():
            assert short is None
            assert not line.closed
        case Queue(position=position, deadline_s=deadline_s):
            assert position == line.waiting + 1 <= max(policy.max_pending, line.spare)
            assert line.now_s <= deadline_s <= line.now_s + max(policy.max_wait_s, 5.0)
        case Reject(reason=reason):
            assert short is not None or reason is RejectReason.SHUTTING_DOWN


@given(st.integers(-5, 10_000), st.none() | st.floats(0, 1e4), st.floats(0, 600))
def test_when_to_come_again_is_at_least_a_second_and_at_most_a_minute(
    position: int, pace_s: float | None, wait_s: float
) -> None:
    assert 1 <= retry_after_s(position, pace_s, wait_s) <= LONGEST_RETRY_S


async def test_what_asks_for_more_than_there_is_in_all_does_not_wait(own: Children) -> None:
    door = Door(own)
    door.admission.capacity = Capacity(max_memory_bytes=GIB)
    with pytest.raises(CapacityRejected) as refused:
        await door.line.admitted(door.wish(SandboxResources(memory_bytes=2 * GIB)))
    assert refused.value.refusal.reason is RejectReason.OVERSIZED
    assert refused.value.limit == GIB


async def test_launches_take_turns_and_those_for_a_pool_come_last(own: Children) -> None:
    launches = Launches(Admission(Capacity(), Gauge()), at_once=1)
    order: list[str] = []
    go = asyncio.Event()

    async def launch(name: str, *, owner: str = "alice", background: bool = False) -> None:
        async with launches.turn("create", owner, background=background):
            order.append(name)
            await go.wait()

    tasks = [own.start(launch("first"), name="first"), own.start(launch("pool", background=True), name="pool")]
    tasks += [own.start(launch(name), name=name) for name in ("second", "third")]
    await settle(3)
    assert (launches.running, launches.waiting, order) == (1, 2, ["first"])
    tasks[2].cancel()
    go.set()
    await settle(10)
    assert order == ["first", "third", "pool"]
    assert (launches.running, launches.waiting) == (0, 0)


async def test_launches_of_several_owners_go_by_turns(own: Children) -> None:
    launches = Launches(Admission(Capacity(), Gauge()), at_once=1)
    order: list[str] = []
    go = asyncio.Event()

    async def launch(owner: str) -> None:
        async with launches.turn("create", owner):
            order.append(owner)
            await go.wait()

    for owner in ("bob", "bob", "bob", "bob", "alice", "alice"):
        own.start(launch(owner), name=owner)
    await settle(3)
    go.set()
    await settle(20)
    assert order == ["bob", "bob", "alice", "bob", "alice", "bob"]


async def test_a_launch_whose_machine_fell_below_its_floor_meanwhile_is_refused() -> None:
    gauge = Gauge()
    launches = Launches(Admission(Capacity(memory_floor_bytes=GIB), gauge), at_once=2)
    gauge.room = replace(gauge.room, memory_bytes=100 * MIB)
    with pytest.raises(CapacityRejected):
        async with launches.turn("create", "alice"):
            raise AssertionError("never begun")
    assert launches.running == 0


def test_a_machine_of_many_processors_launches_more_at_once() -> None:
    assert launches_at_once(1) <= launches_at_once(4) <= launches_at_once(64)
