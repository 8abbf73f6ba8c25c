"""The host's side against agents that lie, stall or vanish."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from firkin.channels import SocketChannel, over_socket
from firkin.engine import guest_files, guest_link, guest_watches
from firkin.engine.guest_copies import GuestCopies
from firkin.engine.guest_faults import GuestRefused
from firkin.engine.guest_files import GuestFiles
from firkin.engine.guest_link import GuestLink
from firkin.engine.guest_processes import GuestProcesses
from firkin.law.errors import DeadlineExceeded, FileFault, FilesystemFailure, FirkinError, SandboxUnavailable
from firkin.law.files import CopyOptions, ListOptions, SandboxPath, WatchOptions
from firkin.law.ids import SandboxId
from firkin.law.processes import Command
from firkin.wire.frames import (
    CANCEL,
    CREDIT,
    DATA,
    DATA_ERR,
    EOF,
    ERROR,
    EVENT,
    GRANT_AT,
    HEADER,
    HELLO,
    MAX_PAYLOAD,
    OPEN,
    RESULT,
    WINDOW,
    FrameReader,
    credit,
    credit_amount,
    frame,
)

SANDBOX = SandboxId("testbox")
GREETING = frame(HELLO, 0, b'{"protocol":1,"boot":"00"}')


class FakeAgent:
    """The other end of a link, played by the test."""

    def __init__(self, channel: SocketChannel) -> None:
        self.channel = channel
        self._frames = FrameReader()
        self._seen: list[tuple[int, int, bytes]] = []

    async def say(self, kind: int, stream: int, value: object = None) -> None:
        await self.channel.write(frame(kind, stream, b"" if value is None else json.dumps(value).encode()))

    async def hear(self) -> tuple[int, int, bytes]:
        async with asyncio.timeout(10):
            while not self._seen:
                data = await self.channel.read()
                assert data, "the link hung up"
                self._seen += self._frames.feed(data)
        return self._seen.pop(0)

    async def hear_request(self) -> int:
        kind, stream, _ = await self.hear()
        assert kind == OPEN
        return stream


@asynccontextmanager
async def conversation() -> AsyncIterator[tuple[GuestLink, FakeAgent]]:
    ours, theirs = socket.socketpair()
    agent = FakeAgent(await over_socket(theirs))
    await agent.channel.write(GREETING)
    link = await GuestLink.open(await over_socket(ours), SANDBOX)
    try:
        yield link, agent
    finally:
        await link.aclose()
        await agent.channel.aclose()


class SlowChannel:
    """A channel on which each write takes until the other end lets it."""

    def __init__(self, channel: SocketChannel) -> None:
        self._channel = channel
        self.ready = asyncio.Event()
        self.ready.set()
        self.held = asyncio.Event()

    async def read(self, limit: int = 65536) -> bytes:
        return await self._channel.read(limit)

    async def write(self, data: bytes) -> None:
        await self._channel.write(data)
        if not self.ready.is_set():
            self.held.set()
        await self.ready.wait()

    async def end(self) -> None:
        await self._channel.end()

    async def aclose(self) -> None:
        await self._channel.aclose()


async def hung_up(theirs: socket.socket) -> bool:
    theirs.setblocking(False)
    async with asyncio.timeout(10):
        return await asyncio.get_running_loop().sock_recv(theirs, 1) == b""


async def test_a_call_gets_its_answer() -> None:
    async with conversation() as (link, agent):
        asking = asyncio.create_task(link.call("ping"))
        await agent.say(RESULT, await agent.hear_request(), {"a": 1})
        assert await asking == {"a": 1}


async def test_answers_find_their_questions_in_any_order() -> None:
    async with conversation() as (link, agent):
        asking = [asyncio.create_task(link.call("ping")) for _ in range(10)]
        streams = [await agent.hear_request() for _ in asking]
        for stream in reversed(streams):
            await agent.say(RESULT, stream, {"stream": stream})
        assert [(await one)["stream"] for one in asking] == streams


async def test_a_reader_who_goes_away_while_it_grants_more_loses_nothing_of_what_came() -> None:
    ours, theirs = socket.socketpair()
    agent = FakeAgent(await over_socket(theirs))
    await agent.channel.write(GREETING)
    channel = SlowChannel(await over_socket(ours))
    link = await GuestLink.open(channel, SANDBOX)
    stream = link.stream("read")
    given_up = asyncio.create_task(stream.receive(None))
    number = await agent.hear_request()
    channel.ready.clear()
    await agent.channel.write(frame(DATA, number, bytes(GRANT_AT)))
    async with asyncio.timeout(10):
        await channel.held.wait()
        given_up.cancel()
        await asyncio.wait([given_up])
        channel.ready.set()
        received = b""
        while len(received) < GRANT_AT:
            received += (await stream.receive(None))[1]
        await agent.say(RESULT, number, {})
        assert await stream.result() == {}
    await link.aclose()
    kind, _, payload = await agent.hear()
    assert (kind, credit_amount(payload), received) == (CREDIT, GRANT_AT, bytes(GRANT_AT))
    assert await agent.channel.read() == b""
    await agent.channel.aclose()


async def test_an_agent_of_another_protocol_is_refused() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.sendall(frame(HELLO, 0, b'{"protocol":2}'))
        with pytest.raises(SandboxUnavailable, match="version"):
            await GuestLink.open(await over_socket(ours), SANDBOX)
        assert await hung_up(theirs)


async def test_an_agent_that_does_not_greet_is_given_up() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        with pytest.raises(DeadlineExceeded):
            await GuestLink.open(await over_socket(ours), SANDBOX, within_s=0.05)
        assert await hung_up(theirs)


async def test_an_agent_that_hangs_up_instead_of_greeting_is_told() -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    with pytest.raises(SandboxUnavailable):
        await GuestLink.open(await over_socket(ours), SANDBOX)


async def test_a_lost_connection_ends_every_pending_and_later_use() -> None:
    async with conversation() as (link, agent):
        asking = asyncio.create_task(link.call("ping"))
        stream = link.stream("watch", {})
        reading = asyncio.create_task(anext(stream))
        await agent.hear_request()
        await agent.channel.aclose()
        for task in (asking, reading):
            with pytest.raises(SandboxUnavailable):
                await task
        async with asyncio.timeout(5):
            await link.closed.wait()
        with pytest.raises(SandboxUnavailable):
            await link.call("ping")
        with pytest.raises(SandboxUnavailable):
            await anext(stream)
        await stream.aclose()


async def test_an_answer_that_never_comes_is_not_waited_for() -> None:
    async with conversation() as (link, agent):
        with pytest.raises(DeadlineExceeded) as caught:
            await link.call("ping", within_s=0.05)
        assert (caught.value.sandbox_id, caught.value.within_s) == (SANDBOX, 0.05)
        stream = await agent.hear_request()
        assert (await agent.hear())[:2] == (CANCEL, stream)


async def test_a_cancelled_caller_leaves_nothing_behind() -> None:
    async with conversation() as (link, agent):
        asking = asyncio.create_task(link.call("ping"))
        stream = await agent.hear_request()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert (await agent.hear())[:2] == (CANCEL, stream)
        await agent.say(RESULT, stream, {})
        other = asyncio.create_task(link.call("ping"))
        await agent.say(RESULT, await agent.hear_request(), {"fresh": True})
        assert await other == {"fresh": True}


NONSENSE = {
    "junk": b"\xff" * 64,
    "an oversized frame": HEADER.pack(MAX_PAYLOAD + 1, DATA, 1),
    "a second greeting": GREETING,
    "a second end of the data": frame(EOF, 1) + frame(DATA, 1, b"x") + frame(EOF, 1),
    "a request": frame(OPEN, 1, b"{}"),
    "more data than was granted": frame(DATA, 1, bytes(WINDOW)) + frame(DATA, 1, b"x"),
    "credit of a wrong size": frame(CREDIT, 1, b"x"),
    "an answer that is no object": frame(RESULT, 1, b"[]"),
    "an answer that is no JSON": frame(RESULT, 1, b"\xff"),
    "an answer nested too deep": frame(RESULT, 1, b"[" * 500_000),
    "a refusal without a code": frame(ERROR, 1, b"{}"),
    "a refusal of a wrong shape": frame(ERROR, 1, b'{"code":1,"message":[]}'),
}


@pytest.mark.parametrize("what", NONSENSE)
async def test_an_agent_that_breaks_the_protocol_is_cut_off(what: str) -> None:
    async with conversation() as (link, agent):
        stream = link.stream("start", {})
        await link.flush()
        assert await agent.hear_request() == stream.id == 1
        await agent.channel.write(NONSENSE[what])
        with pytest.raises(SandboxUnavailable):
            await stream.result(10)
        assert link.closed.is_set()
        async with asyncio.timeout(10):
            while await agent.channel.read():
                pass


@pytest.mark.parametrize(
    "answer",
    [{}, {"pid": "1"}, {"pid": -1}, {"pid": True}, {"pid": 0}, {"pid": 1 << 70}],
)
async def test_an_impossible_process_number_is_not_believed(answer: object) -> None:
    async with conversation() as (link, agent):
        starting = asyncio.create_task(GuestProcesses(link).start(Command.argv("true")))
        await agent.say(EVENT, await agent.hear_request(), answer)
        with pytest.raises(SandboxUnavailable):
            await starting


@pytest.mark.parametrize("name", ["/etc/passwd", "../up", "a/../../b", "", "a\0b"])
async def test_an_event_outside_the_watched_directory_is_not_believed(name: str) -> None:
    async with conversation() as (link, agent):
        watching = asyncio.create_task(GuestFiles(link).watch(SandboxPath("/x"), WatchOptions()))
        stream = await agent.hear_request()
        await agent.say(EVENT, stream, {"watch": 7})
        watch = await watching
        asking = asyncio.create_task(anext(watch))
        answer = {"events": [{"kind": "create", "name": name}], "left": 0}
        await agent.say(RESULT, await agent.hear_request(), answer)
        with pytest.raises(SandboxUnavailable):
            await asking
        await watch.aclose()


async def test_an_unknown_code_counts_as_internal_and_its_text_is_tamed() -> None:
    async with conversation() as (link, agent):
        asking = asyncio.create_task(link.call("ping"))
        text = "\x1b[31m" + "x" * 5000
        await agent.say(ERROR, await agent.hear_request(), {"code": "__class__", "message": text})
        with pytest.raises(GuestRefused) as caught:
            await asking
        assert caught.value.code == "internal"
        assert "\x1b" not in caught.value.message
        assert len(caught.value.message) == 1000


async def test_events_that_nobody_reads_end_only_their_own_stream() -> None:
    async with conversation() as (link, agent):
        stream = link.stream("watch", {})
        await link.flush()
        id = await agent.hear_request()
        event = frame(EVENT, id, json.dumps({"events": ["x" * 1000] * 900}).encode())
        for _ in range(40):
            await agent.channel.write(event)
        assert (await agent.hear())[:2] == (CANCEL, id)
        with pytest.raises(FirkinError, match="faster than they were read"):
            await stream.result(10)
        asking = asyncio.create_task(link.call("ping"))
        await agent.say(RESULT, await agent.hear_request(), {})
        assert await asking == {}


async def test_credit_is_granted_only_for_what_was_read() -> None:
    async with conversation() as (link, agent):
        stream = link.stream("start", {})
        await link.flush()
        id = await agent.hear_request()
        for _ in range(4):
            await agent.channel.write(frame(DATA, id, bytes(WINDOW // 4)))
        await agent.say(EVENT, 999, {})
        assert await anext(stream) == (DATA, bytes(WINDOW // 2))  # what has come already is one piece
        kind, granted_on, payload = await agent.hear()
        assert (kind, granted_on, int.from_bytes(payload, "little")) == (CREDIT, id, WINDOW // 2)
        await stream.aclose()


async def test_no_more_is_sent_than_was_granted() -> None:
    async with conversation() as (link, agent):
        stream = link.stream("write", {})
        sending = asyncio.create_task(stream.send(bytes(WINDOW + 10)))
        id = await agent.hear_request()
        received = 0
        while received < WINDOW:
            received += len((await agent.hear())[2])
        assert received == WINDOW
        assert not sending.done()
        await agent.channel.write(credit(id, 100))
        assert len((await agent.hear())[2]) == 10
        assert await sending
        await stream.aclose()


async def test_a_sender_is_told_when_the_agent_has_already_answered() -> None:
    async with conversation() as (link, agent):
        stream = link.stream("write", {})
        sending = asyncio.create_task(stream.send(bytes(WINDOW * 2)))
        id = await agent.hear_request()
        await agent.say(ERROR, id, {"code": "no_space", "message": "full"})
        assert await sending is False
        with pytest.raises(GuestRefused, match="full"):
            await stream.result()


def entry(path: str, type: str) -> dict[str, object]:
    facts = dict.fromkeys(("size", "uid", "gid", "mtime_ns"), 0)
    return {"path": path, "type": type, "mode": 0o755, "owner": "", "group": "", **facts}


@pytest.mark.parametrize("path", ["/etc/cron.d/evil", "/x/../../evil", "/x/a/b", "/x/..", "/x", "/x/"])
async def test_copying_out_writes_nothing_outside_whatever_the_sandbox_says(path: str, tmp_path: Path) -> None:
    async with conversation() as (link, agent):
        copies = GuestCopies(GuestFiles(link))
        copying = asyncio.create_task(copies.copy_out(SandboxPath("/x"), tmp_path / "out", CopyOptions()))
        await agent.say(RESULT, await agent.hear_request(), entry("/x", "directory"))
        stream = await agent.hear_request()
        await agent.say(EVENT, stream, {"entries": [entry(path, "directory")]})
        await agent.say(RESULT, stream, {})
        with pytest.raises(FirkinError, match="impossible name"):
            async with asyncio.timeout(10):
                await copying
        assert list(tmp_path.iterdir()) == []


async def test_entries_of_a_wrong_shape_are_not_believed() -> None:
    for broken in ([1], [{}], "x", [entry("relative", "file")], [entry("/x", "door")]):
        async with conversation() as (link, agent):
            listing = asyncio.create_task(GuestFiles(link).list(SandboxPath("/x"), ListOptions()))
            await agent.say(EVENT, await agent.hear_request(), {"entries": broken})
            with pytest.raises(SandboxUnavailable):
                await listing


async def pages(agent: FakeAgent, stream: int, count: int) -> None:
    """A list of so many times a hundred files, sent as fast as it goes."""
    page = json.dumps({"entries": [entry(f"/x/{number}", "file") for number in range(100)]}).encode()
    for _ in range(count):
        await agent.channel.write(frame(EVENT, stream, page))
    await agent.say(RESULT, stream, {})


async def test_a_long_list_lets_others_have_their_turns() -> None:
    async with conversation() as (link, agent):
        listing = asyncio.create_task(GuestFiles(link).list(SandboxPath("/x"), ListOptions()))
        sending = asyncio.create_task(pages(agent, await agent.hear_request(), 60))
        turns = 0
        while not listing.done():
            await asyncio.sleep(0)
            turns += 1
        assert len(await listing) == 6_000
        assert turns >= 60
        await sending


async def test_a_reader_that_takes_a_page_a_turn_keeps_up_with_what_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest_link, "_BEHIND_BYTES", 1 << 14)
    monkeypatch.setattr(guest_link, "_MOST_EVENT_BYTES", 350_000)
    async with conversation() as (link, agent):
        listing = asyncio.create_task(GuestFiles(link).list(SandboxPath("/x"), ListOptions()))
        sending = asyncio.create_task(pages(agent, await agent.hear_request(), 60))
        assert len(await listing) == 6_000
        await sending


async def test_a_list_of_few_entries_that_take_much_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest_files, "ENTRIES_AT_MOST", 1000)
    async with conversation() as (link, agent):
        listing = asyncio.create_task(GuestFiles(link).list(SandboxPath("/x"), ListOptions()))
        stream = await agent.hear_request()
        for _ in range(5):
            await agent.say(EVENT, stream, {"entries": [{**entry("/x/a", "file"), "metadata": {"m": "x" * 200_000}}]})
        assert (await agent.hear())[:2] == (CANCEL, stream)
        with pytest.raises(FilesystemFailure) as caught:
            await listing
        assert caught.value.fault is FileFault.LIMIT


async def test_a_list_is_refused_as_soon_as_it_is_longer_than_its_caller_wants() -> None:
    async with conversation() as (link, agent):
        files = GuestFiles(link)
        for most, fits in ((100, True), (99, False)):
            listing = asyncio.create_task(files.list(SandboxPath("/x"), ListOptions(at_most=most)))
            await pages(agent, await agent.hear_request(), 1)
            if fits:
                assert len(await listing) == 100
                continue
            with pytest.raises(FilesystemFailure, match="more than 99 entries"):
                await listing


@pytest.mark.parametrize("kinds", [(DATA,), (DATA_ERR,), (DATA, DATA_ERR)])
async def test_small_pieces_that_nobody_reads_take_no_more_room_than_large_ones(kinds: tuple[int, ...]) -> None:
    async with conversation() as (link, agent):
        stream = link.stream("start", {})
        await link.flush()
        id = await agent.hear_request()
        pieces = [frame(kinds[n % len(kinds)], id, bytes([n % 251])) for n in range(20_000)]
        await agent.channel.write(b"".join(pieces))
        asking = asyncio.create_task(link.call("ping"))
        await agent.say(RESULT, await agent.hear_request(), {})
        await asking
        assert len(stream._items) < 300
        await agent.say(RESULT, id, {})
        read = [item async for item in stream][:-1]
        for place, kind in enumerate(kinds):
            heard = b"".join(data for its, data in read if its == kind)
            assert heard == bytes(n % 251 for n in range(20_000) if n % len(kinds) == place)
        await stream.aclose()


async def test_an_agent_that_says_there_is_always_more_is_not_believed_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(guest_watches, "MOST_DRAINED", 1000)
    async with conversation() as (link, agent):
        watching = asyncio.create_task(GuestFiles(link).watch(SandboxPath("/x"), WatchOptions()))
        await agent.say(EVENT, await agent.hear_request(), {"watch": 7})
        watch = await watching
        draining = asyncio.create_task(watch.drain())

        async def lie() -> None:
            while True:
                kind, stream, _ = await agent.hear()
                if kind == OPEN:
                    events = [{"kind": "create", "name": "a"}] * 100
                    await agent.say(RESULT, stream, {"events": events, "left": 1 << 60})

        lying = asyncio.create_task(lie())
        async with asyncio.timeout(10):
            assert len(await draining) == 1000
        lying.cancel()
        await asyncio.gather(lying, return_exceptions=True)
        await watch.aclose()
