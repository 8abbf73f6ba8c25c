"""Programs inside ask of their own sandbox: little is answered, nobody holds the agent up."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import socket
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import pytest

from firkin.engine.guest_link import GuestLink
from firkin.engine.guest_ports import GuestPorts
from firkin.guest.door import CALL_S, MOST_CALLERS, MOST_HEAD
from tests.guest.conftest import RunningAgent
from tests.guest.test_ports import free_port

WORD = "the word"
DIGEST = hashlib.blake2s(WORD.encode()).hexdigest()
ENV = {"GREETING": 'grüß "dich"', "E2B_SANDBOX": "true"}
OPENING = f"X-Access-Token: {WORD}"


async def introduce(link: GuestLink, port: int, **more: object) -> int:
    told = await link.call("introduce", {"port": port, "env": ENV, "digest": DIGEST, **more})
    return int(told["port"])


async def ask(port: int, request: str, *fields: str) -> tuple[int, str]:
    async with asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write("\r\n".join([f"{request} HTTP/1.1", "Host: localhost", *fields, "", ""]).encode())
        answer = (await reader.read(-1)).decode()
        writer.close()
    head, _, body = answer.partition("\r\n\r\n")
    return int(head.split()[1]), body


@pytest.fixture
async def door(link: GuestLink) -> int:
    port = free_port()
    assert await introduce(link, port) == port
    return port


async def test_nothing_listens_before_it_was_introduced(link: GuestLink) -> None:
    await link.call("ping")
    with pytest.raises(ConnectionRefusedError):
        await ask(free_port(), "GET /health")


async def test_health_is_everybodys(door: int) -> None:
    assert await ask(door, "GET /health") == (204, "")
    assert await ask(door, "HEAD /health?x=1") == (204, "")


async def test_what_it_was_given_is_for_who_shows_the_word(door: int) -> None:
    status, body = await ask(door, "GET /envs", OPENING)
    assert (status, json.loads(body)) == (200, ENV)
    assert (await ask(door, "GET /envs"))[0] == 401
    assert (await ask(door, "GET /envs", "x-access-token: another"))[0] == 401
    assert (await ask(door, "GET /anything"))[0] == 401


async def test_without_a_digest_everybody_inside_may_know(link: GuestLink) -> None:
    port = free_port()
    await introduce(link, port, digest="")
    status, body = await ask(port, "GET /envs")
    assert (status, json.loads(body)) == (200, ENV)


async def test_it_says_what_is_not_there(door: int) -> None:
    for request in ("GET /", "POST /envs", "GET /files?path=/etc/passwd"):
        assert (await ask(door, request, OPENING))[0] == 404


async def test_who_is_introduced_again_answers_for_the_new_one(link: GuestLink, door: int) -> None:
    await introduce(link, door, env={"NEW": "1"}, digest=hashlib.blake2s(b"new").hexdigest())
    assert (await ask(door, "GET /envs", OPENING))[0] == 401
    assert await ask(door, "GET /envs", "X-Access-Token: new") == (200, '{"NEW":"1"}')


async def test_a_port_that_a_program_has_stays_the_programs(link: GuestLink) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert await introduce(link, port) == 0
    assert await introduce(link, port) == port  # it has ended meanwhile


async def test_its_own_port_is_none_of_the_sandboxs(ports: GuestPorts, door: int) -> None:
    assert door not in [binding.guest for binding in await ports.list()]


async def test_an_endless_head_is_cut_off(door: int) -> None:
    async with asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", door)
        writer.write(b"GET /health HTTP/1.1\r\nX-Long: " + b"x" * MOST_HEAD)
        with suppress(ConnectionError):
            assert await reader.read(-1) == b""
        writer.close()
    assert await ask(door, "GET /health") == (204, "")


async def test_nonsense_harms_only_who_says_it(door: int) -> None:
    async with asyncio.timeout(10):
        for nonsense in (b"\r\n\r\n", b"\xff\x00" * 100 + b"\r\n\r\n", b"GET\r\n\r\n", b""):
            reader, writer = await asyncio.open_connection("127.0.0.1", door)
            writer.write(nonsense)
            writer.write_eof()
            await reader.read(-1)
            writer.close()
    assert await ask(door, "GET /health") == (204, "")


async def test_a_head_may_come_in_pieces(door: int) -> None:
    async with asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", door)
        for piece in (b"GET /hea", b"lth HTTP/1.1\r", b"\n\r", b"\n"):
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        assert (await reader.read(-1)).startswith(b"HTTP/1.1 204 ")
        writer.close()


@pytest.mark.thorough
async def test_callers_who_say_nothing_hold_neither_the_agent_nor_the_door_for_long(
    agent: RunningAgent, link: GuestLink, door: int
) -> None:
    def descriptors() -> int:
        return len(os.listdir(f"/proc/{agent.pid}/fd"))

    before = descriptors()
    async with AsyncExitStack() as open_ones:
        for _ in range(MOST_CALLERS + 4):
            _, writer = await asyncio.open_connection("127.0.0.1", door)
            open_ones.callback(writer.close)
        await link.call("ping", within_s=2)
        assert descriptors() - before == MOST_CALLERS
        async with asyncio.timeout(2 * CALL_S):
            assert await ask(door, "GET /health") == (204, "")
    async with asyncio.timeout(5):
        while descriptors() != before:  # noqa: ASYNC110 — another process's
            await asyncio.sleep(0.01)


@pytest.mark.thorough
async def test_who_does_not_take_an_answer_holds_up_nobody(link: GuestLink) -> None:
    port = free_port()
    await introduce(link, port, env={f"V{number}": "x" * 100_000 for number in range(9)})
    async with AsyncExitStack() as open_ones:
        for _ in range(MOST_CALLERS - 1):
            _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)
            open_ones.callback(writer.close)
            writer.write(f"GET /envs HTTP/1.1\r\n{OPENING}\r\n\r\n".encode())
        await link.call("ping", within_s=2)
        assert await ask(port, "GET /health") == (204, "")


async def test_files_are_left_and_renewed(link: GuestLink, tmp_path: Path) -> None:
    path = tmp_path / "new" / ".note"
    await link.call("introduce", {"files": {str(path): "one"}})
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("one", 0o444)
    for text in ("2", "3", "longer"):
        await link.call("introduce", {"files": {str(path): text}})
        assert path.read_text() == text


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/etc/hostname", path)])
async def test_something_else_in_a_files_place_is_left_alone(
    link: GuestLink, tmp_path: Path, make: Callable[[str], None]
) -> None:
    make(str(tmp_path / "note"))
    port = free_port()
    assert await introduce(link, port, files={str(tmp_path / "note"): "one", "/proc/nowhere/x": "two"}) == port
    assert not (tmp_path / "note").is_file() or (tmp_path / "note").read_text() != "one"
