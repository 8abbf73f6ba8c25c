"""Standing still, giving memory back, ports from outside, and how an end is told."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from firkin.drivers.boxes.freezer import Freezer
from firkin.drivers.boxes.instance import BoxInstance
from firkin.drivers.ground.ground import Ground
from firkin.drivers.namespaces.driver import NamespacesDriver
from firkin.host import cgroups
from firkin.law.capabilities import CapabilityName
from firkin.law.errors import BackendFailure, PortFailure, SandboxUnavailable
from firkin.law.states import EndCause
from firkin.testing.driver_suite import becomes, begun, said, talking
from tests.namespaces.alone import SIZE, Alone, driver_alone

pytestmark = pytest.mark.asyncio(loop_scope="module")
FREEZING = (CapabilityName.PAUSE_CAPTURE, CapabilityName.PAUSE_RESUME, CapabilityName.SNAPSHOT_CAPTURE)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def alone(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Alone]:
    async with driver_alone(tmp_path_factory.mktemp("pauses")) as started:
        yield started


def pid_of(instance: BoxInstance) -> int:
    return int(instance.ref.facts["pid"])


async def cpu_us(instance: BoxInstance) -> int:
    return (await instance.usage())["cpu_us"]


async def test_nothing_runs_once_freeze_has_returned(alone: Alone) -> None:
    instance = await alone.boot("still")
    for _ in range(3):
        await begun(instance, "while :; do :; done")
    for _ in range(10):
        await instance.freeze()
        before = await cpu_us(instance)
        await asyncio.sleep(0.02)  # time in which nothing may happen
        assert await cpu_us(instance) == before
        await instance.freeze()
        await instance.thaw()
        await instance.thaw()
    await instance.destroy()


async def test_parents_that_wait_for_a_vfork_are_frozen(alone: Alone) -> None:
    """They stop only when they are asked again: without that, one freeze in a thousand of a shell in a loop failed."""
    instance = await alone.boot("vforks")
    for _ in range(8):
        await begun(instance, "while :; do /bin/true; done")
    for _ in range(300):
        async with asyncio.timeout(1):
            await instance.freeze()
        await instance.thaw()
    await instance.destroy()


async def test_a_fork_bomb_is_frozen_and_destroyed(alone: Alone) -> None:
    instance = await alone.boot("bomb")
    await begun(instance, "exec bash -c 'b() { b | b & }; b; sleep 100'")
    for _ in range(5):
        await instance.freeze()
        before = await cpu_us(instance)
        await asyncio.sleep(0.02)  # time in which nothing may happen
        assert await cpu_us(instance) == before
        await instance.thaw()
    await instance.freeze()
    await instance.destroy()
    assert not await alone.driver.live()


async def test_what_does_not_stop_in_time_runs_on(alone: Alone, monkeypatch: pytest.MonkeyPatch) -> None:
    instance = await alone.boot("stubborn")
    monkeypatch.setattr("firkin.drivers.boxes.freezer.STOPS_WITHIN_S", 0.05)
    with monkeypatch.context() as never:
        never.setattr(cgroups.Trees, "is_frozen", lambda self, box: False)
        with pytest.raises(BackendFailure, match="freeze"):
            await instance.freeze()
    assert not instance._freezer.frozen
    assert await said(instance, "echo well") == "well\n"
    await instance.destroy()


async def test_a_commands_deadline_stands_still_with_it(alone: Alone) -> None:
    instance = await alone.boot("deadline")
    async with talking(instance) as talk:
        begin = {"argv": ["sleep", "60"], "env": {}, "cwd": "", "user": "", "stdin": False, "pty": None}
        stream = await talk.request("start", **begin, timeout_ms=3000)
        assert await talk.event(stream)
        await instance.freeze()
        await asyncio.sleep(4)  # longer than the deadline
        await instance.thaw()
        thawed_at = asyncio.get_running_loop().time()
        answer = await talk.finished(stream)
        assert answer.result == {"signal": 9, "timed_out": True}
        assert asyncio.get_running_loop().time() - thawed_at > 1.5
    await instance.destroy()


async def test_freezing_races_the_end(alone: Alone) -> None:
    for number in range(5):
        instance = await alone.boot(f"race{number}")
        outcomes = await asyncio.gather(
            instance.freeze(), instance.destroy(), instance.thaw(), instance.freeze(), return_exceptions=True
        )
        assert all(outcome is None or isinstance(outcome, SandboxUnavailable) for outcome in outcomes), outcomes
        with pytest.raises(SandboxUnavailable):
            await instance.freeze()
        await alone.driver.discard(instance.sandbox_id)
    assert not await alone.driver.live()


async def test_a_frozen_sandbox_gives_its_caches_back_and_runs_on(alone: Alone) -> None:
    instance = await alone.boot("gives")
    await said(instance, "head -c 60000000 /dev/urandom > /root/file; sync; sha256sum /root/file > /root/sum")
    cached = (await instance.usage())["memory_cache_bytes"]
    await instance.freeze()
    await instance.reclaim()
    assert (await instance.usage())["memory_cache_bytes"] < cached // 4
    await instance.thaw()
    assert await said(instance, "sha256sum -c /root/sum") == "/root/file: OK\n"
    await instance.destroy()


async def test_swap_is_for_frozen_sandboxes_only(alone: Alone) -> None:
    trees = alone.driver._trees
    if trees.layout.version != 1 or "memory" not in trees.layout.controllers:
        pytest.skip("read from the files of version 1")
    instance = await alone.boot("swaps")
    folder = Path(trees.layout.roots["memory"]) / "firkin" / trees.label / "swaps"
    if not (folder / "memory.memsw.limit_in_bytes").exists():
        pytest.skip("this kernel does not account for swap")

    def allowed() -> list[int]:
        return [int((folder / leaf / "memory.memsw.limit_in_bytes").read_text()) for leaf in ("", "user")]

    before = allowed()
    assert before[1] == SIZE.memory_bytes
    await instance.reclaim()
    assert allowed() == before, "it was not frozen"
    await instance.freeze()
    await instance.reclaim()
    assert min(allowed()) > 1 << 50
    await instance.thaw()
    assert allowed() == before
    await instance.freeze()
    reclaiming = asyncio.gather(instance.reclaim(), instance.reclaim())
    await asyncio.sleep(0)
    await instance.thaw()
    assert allowed() == before
    await reclaiming
    assert allowed() == before
    await instance.freeze()
    await instance.reclaim()
    await Freezer(trees, instance.sandbox_id).thaw()  # as a later server does
    assert allowed() == before
    await instance.destroy()


async def test_what_reclaims_ends_with_the_thaw(alone: Alone, monkeypatch: pytest.MonkeyPatch) -> None:
    instance = await alone.boot("endless")
    monkeypatch.setattr("firkin.drivers.boxes.freezer._WRITE", "exec sleep 1000")
    await instance.freeze()
    reclaiming = asyncio.gather(instance.reclaim())
    while not _children("sleep"):  # noqa: ASYNC110 — the kernel tells nobody of an exec
        await asyncio.sleep(0)
    await instance.thaw()
    async with asyncio.timeout(5):
        await reclaiming
    assert not _children("sleep")
    await instance.destroy()


def _children(name: str) -> list[str]:
    path = f"/proc/self/task/{os.getpid()}/children"
    return [pid for pid in Path(path).read_text().split() if Path(f"/proc/{pid}/comm").read_text().strip() == name]


async def test_a_host_without_a_freezer_offers_no_pauses(tmp_path: Path) -> None:
    found = cgroups.detect()
    without = cgroups.Layout(1, found.roots, found.controllers - {"freezer"})
    for layout, offered in ((without, False), (cgroups.Layout(2, {"": "/"}, frozenset()), True)):
        report = await NamespacesDriver(tmp_path, ground=Ground(tmp_path, layout=layout)).capabilities()
        assert [report.supports(name) for name in FREEZING] == [offered] * 3


SERVER = """
import socket, sys
server = socket.create_server((sys.argv[1], int(sys.argv[2])), family=int(sys.argv[3]))
while True:
    connection, _ = server.accept()
    connection.sendall(b"from inside")
    connection.close()
"""


async def serving(instance: BoxInstance, address: str, port: int, family: int) -> None:
    await begun(instance, f"exec python3 -c '{SERVER}' {address} {port} {family}")
    await becomes(instance, f"grep -c :{port:04X} /proc/net/tcp /proc/net/tcp6 | grep -q :[1-9]; echo $?", "0\n")


async def heard(instance: BoxInstance, port: int) -> bytes:
    channel = await instance.dial_port(port)
    said_inside = b""
    while data := await channel.read():
        said_inside += data
    await channel.aclose()
    return said_inside


@pytest.mark.parametrize(
    ("address", "port", "family"), [("127.0.0.1", 8001, 2), ("0.0.0.0", 8002, 2), ("::1", 8003, 10)]
)
async def test_a_port_is_reached_where_it_listens(alone: Alone, address: str, port: int, family: int) -> None:
    instance = await alone.boot("ports")
    before = os.stat("/proc/self/ns/net").st_ino
    with pytest.raises(PortFailure) as refused:
        await instance.dial_port(port)
    assert refused.value.refused
    await serving(instance, address, port, family)
    assert await heard(instance, port) == b"from inside"
    assert os.stat("/proc/self/ns/net").st_ino == before
    await instance.destroy()
    with pytest.raises(SandboxUnavailable):
        await instance.dial_port(port)
    await alone.driver.discard(instance.sandbox_id)


async def test_two_sandboxes_have_the_same_port_each(alone: Alone) -> None:
    one, two = await alone.boot("one"), await alone.boot("two")
    await serving(one, "127.0.0.1", 8000, 2)
    assert await heard(one, 8000) == b"from inside"
    with pytest.raises(PortFailure):
        await two.dial_port(8000)
    await one.destroy()
    await two.destroy()


async def test_a_listener_that_never_accepts_keeps_nobody_else_waiting(alone: Alone) -> None:
    instance = await alone.boot("full")
    deaf = 'import socket, time; s = socket.create_server(("127.0.0.1", 8004), backlog=0); time.sleep(1000)'
    await begun(instance, f"exec python3 -c '{deaf}'")
    await serving(instance, "127.0.0.1", 8005, 2)
    await becomes(instance, f"grep -q :{8004:04X} /proc/net/tcp; echo $?", "0\n")
    waiting = [asyncio.gather(instance.dial_port(8004), return_exceptions=True) for _ in range(8)]
    async with asyncio.timeout(3):
        assert await heard(instance, 8005) == b"from inside"
    for outcome in [(await each)[0] for each in waiting]:
        if isinstance(outcome, BaseException):
            assert isinstance(outcome, PortFailure)
            assert not outcome.refused
        else:
            outcome.abort()
    await instance.destroy()


async def test_the_ports_of_an_adopted_sandbox_are_reached(tmp_path: Path, alone: Alone) -> None:
    first = NamespacesDriver.from_settings(tmp_path, {"ready_slots": "1"})
    await first.start()
    await first.sweep([])
    instance = await first.boot(alone.plan("adopted"))
    await serving(instance, "127.0.0.1", 8006, 2)
    await first.aclose()
    second = NamespacesDriver.from_settings(tmp_path, {"ready_slots": "1"})
    await second.start()
    again = await second.adopt(instance.sandbox_id, instance.ref)
    assert again is not None
    assert await heard(again, 8006) == b"from inside"
    network = again.slot.network
    await again.destroy()
    await second.sweep([])
    await second.aclose()
    assert again.slot.network == -1
    assert not os.path.exists(f"/proc/self/fd/{network}") or "net:" not in os.readlink(f"/proc/self/fd/{network}")


async def test_a_disk_that_failed_is_the_cause_of_the_end(alone: Alone) -> None:
    instance = await alone.boot("baddisk")
    trigger = Path(f"/sys/fs/ext4/loop{instance.slot.numbers.loop}/trigger_fs_error")
    if not trigger.exists():
        pytest.skip("this kernel cannot make ext4 errors on purpose")
    trigger.write_text("a test of firkin's")
    os.kill(pid_of(instance), signal.SIGKILL)
    async with asyncio.timeout(10):
        assert (await instance.ended()).cause is EndCause.DISK_FAILED
    await instance.destroy()


async def test_the_failures_of_a_captured_disk_are_not_its_copys(alone: Alone) -> None:
    source = await alone.boot("failed")
    trigger = Path(f"/sys/fs/ext4/loop{source.slot.numbers.loop}/trigger_fs_error")
    if not trigger.exists():
        pytest.skip("this kernel cannot make ext4 errors on purpose")
    trigger.write_text("a test of firkin's")
    into = alone.folder("failed.d")
    await source.capture(into, room_bytes=1 << 40)
    await asyncio.sleep(1.1)  # the superblock counts in whole seconds
    fork = await alone.fork("failedfork", into)
    os.kill(pid_of(fork), signal.SIGKILL)
    async with asyncio.timeout(10):
        assert (await fork.ended()).cause is EndCause.AGENT_DIED
    await fork.destroy()
    await source.destroy()


async def test_a_command_out_of_memory_is_counted_and_ends_nothing_else(alone: Alone) -> None:
    instance = await alone.boot("hungry")
    code = "x = bytearray(900 << 20)\nfor i in range(0, len(x), 4096): x[i] = 1"
    assert await said(instance, f"python3 -c '{code}'; echo $?") == "137\n"
    assert (await instance.usage())["oom_kills"] >= 1
    assert await said(instance, "echo well") == "well\n"
    await instance.destroy()
