"""An agent that calls and a server that is called: the agent's own code in a thread, the driver's in the loop."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from firkin.drivers.gvisor.calls import INSIDE, CallingAgent, make_folder
from firkin.guest.calling import SOCKET, WORD, Caller
from firkin.guest.loop import READ, Loop


class EchoingGuest:
    """Calls as an agent does; each conversation gets back what it says."""

    def __init__(self, folder: Path) -> None:
        self._loop = Loop()
        self._loop.begin()
        self._over = False
        self._made: list[socket.socket] = []
        word = (folder / INSIDE / WORD).read_bytes()
        self._caller = Caller(self._loop, self._take, str(folder / INSIDE / SOCKET), word)
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> EchoingGuest:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        self._thread.join()
        for made in (*self._made, self._caller._ready):
            if made is not None:
                made.close()

    @property
    def taken(self) -> int:
        return len(self._made)

    def _run(self) -> None:
        self._caller.call()
        while not self._over:
            self._loop.after(0.02, lambda: None)
            self._loop.turn()

    def _take(self, made: socket.socket) -> None:
        self._made.append(made)
        self._loop.watch(made.fileno(), READ, lambda _events: self._echo(made))

    def _echo(self, made: socket.socket) -> None:
        data = made.recv(1000)
        if data:
            made.send(data)
        else:
            self._loop.forget(made.fileno())
            made.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "box"
    make_folder(folder)
    return folder


@pytest.fixture
def strangers() -> Iterator[list[socket.socket]]:
    made: list[socket.socket] = []
    yield made
    for each in made:
        each.close()


async def test_several_conversations_at_once(folder: Path) -> None:
    link = CallingAgent(folder)
    with EchoingGuest(folder):
        await link.ready()
        channels = [await link.dial(5) for _ in range(5)]
        for number, channel in enumerate(channels):
            await channel.write(b"%d" % number)
        for number, channel in enumerate(channels):
            assert await channel.read() == b"%d" % number
            await channel.aclose()
        link.close()


async def test_who_does_not_know_the_word_is_hung_up_on(folder: Path, strangers: list[socket.socket]) -> None:
    link = CallingAgent(folder)
    stranger = socket.socket(socket.AF_UNIX)
    strangers.append(stranger)
    stranger.connect(str(folder / INSIDE / SOCKET))
    stranger.send(b"x" * 32)
    stranger.setblocking(False)
    async with asyncio.timeout(5):
        assert await asyncio.get_running_loop().sock_recv(stranger, 1) == b""
    link.close()


@pytest.mark.thorough
async def test_strangers_do_not_keep_the_agent_out_for_long(folder: Path, strangers: list[socket.socket]) -> None:
    link = CallingAgent(folder)
    for _ in range(20):
        stranger = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        strangers.append(stranger)
        with suppress(BlockingIOError):
            stranger.connect(str(folder / INSIDE / SOCKET))
    with EchoingGuest(folder):
        async with asyncio.timeout(10):
            await link.ready()
    link.close()


@pytest.mark.thorough
async def test_a_channel_is_promised_while_nobody_calls(folder: Path) -> None:
    link = CallingAgent(folder)
    channel = await link.dial(5)
    with EchoingGuest(folder):
        async with asyncio.timeout(5):
            await channel.write(b"at last")
            assert await channel.read() == b"at last"
    await channel.aclose()
    link.close()


@pytest.mark.thorough
async def test_a_promise_that_nobody_waits_for_takes_no_call(folder: Path) -> None:
    link = CallingAgent(folder)
    await (await link.dial(5)).aclose()
    with EchoingGuest(folder) as guest:
        async with asyncio.timeout(5):
            channel = await link.dial(5)
            await channel.write(b"mine")
            assert await channel.read() == b"mine"
        assert guest.taken == 1
        await channel.aclose()
    link.close()


@pytest.mark.thorough
async def test_the_end_of_the_sandbox_ends_what_was_promised(folder: Path) -> None:
    link = CallingAgent(folder)
    channel = await link.dial(5)
    reading = asyncio.ensure_future(channel.read())  # noqa: TID251 — a reader of the test's own
    await asyncio.sleep(0)
    link.close()
    assert await reading == b""
    with pytest.raises(ConnectionError):
        await channel.write(b"x")


async def test_a_later_server_is_called_too(folder: Path) -> None:
    first = CallingAgent(folder)
    with EchoingGuest(folder):
        await first.ready()
        first.close()
        later = CallingAgent(folder)
        async with asyncio.timeout(5):
            await later.ready()
            channel = await later.dial(5)
            await channel.write(b"again")
            assert await channel.read() == b"again"
            await channel.aclose()
        later.close()


def test_the_word_is_of_one_sandbox_and_for_root_alone(folder: Path, tmp_path: Path) -> None:
    make_folder(tmp_path / "other")
    words = {(path / INSIDE / WORD).read_text() for path in (folder, tmp_path / "other")}
    assert len(words) == 2
    assert os.stat(folder / INSIDE).st_mode & 0o077 == 0
