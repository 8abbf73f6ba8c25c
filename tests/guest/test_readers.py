"""Output reaches every reader in order, waits for slow ones, and is kept for those who come later."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from firkin.engine.guest_link import GuestLink
from firkin.engine.guest_processes import MOST_COLLECTED, GuestProcesses
from firkin.law.errors import SandboxUnavailable
from firkin.law.ids import ProcessTag
from firkin.law.processes import (
    Argv,
    ById,
    ByTag,
    Command,
    Ended,
    Exited,
    ProcessStream,
    Shell,
    Signal,
    Signaled,
    Started,
    Stderr,
    Stdout,
)
from firkin.wire.operations import RETAINED_OUTPUT
from tests.guest.conftest import RunningAgent

COUNT = "i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done"
COUNTED = "".join(f"line {i}\n" for i in range(2000)).encode()


async def stdout_of(stream: ProcessStream) -> bytes:
    return b"".join([event.data async for event in stream if isinstance(event, Stdout)])


def resident(pid: int) -> int:
    """Bytes of anonymous memory."""
    [line] = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("RssAnon")]
    return int(line.split()[1]) * 1024


async def test_two_readers_get_all_the_output(processes: GuestProcesses) -> None:
    first = await processes.stream(Command(mode=Shell(f"read x; {COUNT}"), keep_stdin=True))
    second = await processes.connect(ById(first.info.id))
    await processes.send_input(ById(first.info.id), b"\n")
    assert await asyncio.gather(stdout_of(first), stdout_of(second)) == [COUNTED, COUNTED]


async def test_a_reader_that_leaves_does_not_hold_up_the_others(processes: GuestProcesses) -> None:
    first = await processes.stream(Command(mode=Shell("read x; head -c 3000000 /dev/zero"), keep_stdin=True))
    second = await processes.connect(ById(first.info.id))
    await processes.send_input(ById(first.info.id), b"\n")
    third = asyncio.create_task(stdout_of(first))
    await second.aclose()
    assert len(await third) == 3_000_000


async def test_a_new_reader_gets_only_what_is_new(processes: GuestProcesses) -> None:
    stream = await processes.stream(Command(mode=Shell("echo old; read x; echo new"), keep_stdin=True))
    assert isinstance(await anext(stream), Started)
    assert await anext(stream) == Stdout(b"old\n")
    later = await processes.connect(ById(stream.info.id))
    await stream.aclose()
    await processes.send_input(ById(stream.info.id), b"\n")
    assert [event async for event in later][1:] == [Stdout(b"new\n"), Ended(Exited(0))]


async def test_replay_gives_what_was_kept_and_then_what_is_new(processes: GuestProcesses) -> None:
    stream = await processes.stream(Command(mode=Shell("echo old; read x; echo new >&2"), keep_stdin=True))
    assert [await anext(stream), await anext(stream)][1] == Stdout(b"old\n")
    later = await processes.connect(ById(stream.info.id), replay=True)
    await processes.send_input(ById(stream.info.id), b"\n")
    assert [event async for event in later][1:] == [Stdout(b"old\n"), Stderr(b"new\n"), Ended(Exited(0))]
    await stream.aclose()


async def test_without_readers_a_program_never_blocks_and_its_last_output_is_kept(processes: GuestProcesses) -> None:
    info = await processes.start(Command.shell("head -c 5000000 /dev/zero; printf end; exit 4"))
    while await processes.list():
        pass
    output = await processes.wait(ById(info.id))
    assert (output.status, output.truncated, len(output.stdout)) == (Exited(4), True, RETAINED_OUTPUT)
    assert output.stdout.endswith(b"\0end")


async def test_an_ended_program_can_be_waited_for_again(processes: GuestProcesses) -> None:
    info = await processes.start(Command.shell("echo out; echo err >&2"))
    once = await processes.wait(ById(info.id))
    assert once == await processes.wait(ById(info.id))
    assert (once.status, once.stdout, once.stderr, once.truncated) == (Exited(0), b"out\n", b"err\n", False)


@pytest.mark.thorough
async def test_how_a_program_ended_is_kept_whatever_ends_after_it(processes: GuestProcesses) -> None:
    first = await processes.start(Command(mode=Shell("echo out; exit 9"), tag=ProcessTag("first")))
    await processes.wait(ById(first.id))
    for _ in range(40):  # each leaves as much as is kept of one
        await processes.run(Command.shell("head -c 300000 /dev/zero"))
    for _ in range(11):
        await asyncio.gather(*(processes.run(Command(mode=Argv("true"))) for _ in range(100)))
    output = await processes.wait(ByTag(ProcessTag("first")))
    assert (output.status, output.stdout, output.truncated) == (Exited(9), b"", True)
    again = await processes.connect(ById(first.id))
    assert [event async for event in again][1:] == [Ended(Exited(9))]


@pytest.mark.thorough
async def test_a_slow_reader_gets_every_byte_in_bounded_memory(processes: GuestProcesses, agent: RunningAgent) -> None:
    total = 100_000_000
    before = resident(agent.pid)
    stream = await processes.stream(Command.shell(f"yes 123456789012345 | head -c {total}"))
    received, most = bytearray(), 0
    count = 0
    async for event in stream:
        if isinstance(event, Stdout):
            received += event.data
            count += 1
            if count % 200 == 0:
                await asyncio.sleep(0.01)
                most = max(most, resident(agent.pid))
    assert len(received) == total
    assert received == b"123456789012345\n" * (total // 16)
    assert most - before < 8 << 20


async def test_a_reader_that_does_not_read_stops_the_program(processes: GuestProcesses, link: GuestLink) -> None:
    stream = await processes.stream(Command.shell("head -c 2000000 /dev/zero; echo done >&2"))
    for _ in range(50):
        await link.call("ping")
    [running] = await processes.list()
    assert running.id == stream.info.id
    assert len(await stdout_of(stream)) == 2_000_000


async def test_run_keeps_16_mib_and_reads_on(processes: GuestProcesses) -> None:
    output = await processes.run(Command.shell("head -c 20000000 /dev/zero; echo end >&2"))
    assert (len(output.stdout), output.stderr, output.truncated) == (MOST_COLLECTED, b"end\n", True)


async def test_a_program_lives_on_when_its_connection_drops(agent: RunningAgent) -> None:
    first = await agent.link()
    stream = await GuestProcesses(first, default_workdir="/", default_user="root").stream(
        Command(mode=Shell("echo before; read x; echo after"), keep_stdin=True, tag=ProcessTag("survivor"))
    )
    assert [await anext(stream), await anext(stream)][1] == Stdout(b"before\n")
    await first.aclose()
    with pytest.raises(SandboxUnavailable):
        await anext(stream)

    second = await agent.link()
    assert second.hello["boot"] == first.hello["boot"]
    processes = GuestProcesses(second, default_workdir="/", default_user="root")
    again = await processes.connect(ByTag(ProcessTag("survivor")), replay=True)
    await processes.send_input(ByTag(ProcessTag("survivor")), b"\n")
    assert await stdout_of(again) == b"before\nafter\n"
    await second.aclose()


async def test_a_flood_on_one_stream_leaves_others_quick(processes: GuestProcesses, link: GuestLink) -> None:
    flood = await processes.stream(Command.argv("yes"))
    reading = asyncio.create_task(stdout_of(flood))
    for _ in range(20):
        await link.call("ping", within_s=5)
    await processes.signal(ById(flood.info.id), Signal.KILL)
    await reading


@pytest.mark.thorough
async def test_a_hundred_programs_at_once_all_answer(processes: GuestProcesses) -> None:
    outputs = await asyncio.gather(*(processes.run(Command.argv("echo", str(i))) for i in range(100)))
    assert [output.stdout for output in outputs] == [f"{i}\n".encode() for i in range(100)]


@pytest.mark.thorough
async def test_a_storm_of_orphans_is_reaped(processes: GuestProcesses, agent: RunningAgent) -> None:
    output = await processes.run(Command.shell("i=0; while [ $i -lt 3000 ]; do (true &) ; i=$((i+1)); done"))
    assert output.status == Exited(0)
    await processes.run(Command.argv("true"))
    children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
    assert len(children) < 100


@pytest.mark.thorough
async def test_shutdown_ends_every_program_first(processes: GuestProcesses, link: GuestLink) -> None:
    polite = await processes.stream(Command.shell("trap 'echo bye; exit 0' TERM; echo up; while :; do :; done"))
    stubborn = await processes.stream(Command.shell("trap '' TERM; echo up; while :; do sleep 1; done"))
    for stream in (polite, stubborn):
        assert [await anext(stream), await anext(stream)][1] == Stdout(b"up\n")
    await link.call("shutdown", {"grace_ms": 500})
    assert [event async for event in polite] == [Stdout(b"bye\n"), Ended(Exited(0))]
    assert [event async for event in stubborn] == [Ended(Signaled(9))]
    with pytest.raises(SandboxUnavailable, match="shutting down"):
        await processes.run(Command(mode=Argv("true")))
