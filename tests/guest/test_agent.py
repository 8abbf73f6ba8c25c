"""The agent outlives broken hosts, shortages and refused requests."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from firkin.engine.guest_faults import GuestRefused
from firkin.engine.guest_link import GuestLink
from firkin.engine.guest_processes import GuestProcesses
from firkin.law.errors import ProcessFailure, ProcessFault
from firkin.law.processes import ById, Command, Exited, ProcessInfo, Signal
from firkin.wire.frames import DATA, EOF, HEADER, HELLO, MAX_PAYLOAD, OPEN, WINDOW, frame
from tests.guest.conftest import RunningAgent, needs_root

BROKEN = {
    "junk": b"\xff" * 100,
    "an oversized frame": HEADER.pack(MAX_PAYLOAD + 1, OPEN, 1),
    "an unknown kind": HEADER.pack(0, 99, 1),
    "a request that is no object": frame(OPEN, 1, b"[]"),
    "a request without an operation": frame(OPEN, 1, b"{}"),
    "a stream used twice": frame(OPEN, 1, b'{"op":"watch","path":"/"}') * 2,
    "more data than was granted": frame(OPEN, 1, b'{"op":"start","argv":["sleep","9"],"stdin":true,"input":true}')
    + frame(DATA, 1, bytes(WINDOW)) * 3,
    "a frame that only agents send": frame(OPEN, 1, b'{"op":"watch","path":"/"}') + frame(HELLO, 1),
    "credit of a wrong size": frame(OPEN, 1, b'{"op":"watch","path":"/"}') + HEADER.pack(1, 8, 1) + b"x",
}


@pytest.mark.thorough
@pytest.mark.parametrize("what", BROKEN)
async def test_a_broken_host_loses_only_its_own_connection(agent: RunningAgent, link: GuestLink, what: str) -> None:
    with socket.socket(socket.AF_UNIX) as broken:
        broken.settimeout(10)
        broken.connect(agent.socket)
        try:
            broken.sendall(BROKEN[what])
            while broken.recv(65536):
                pass
        except (ConnectionResetError, BrokenPipeError):
            pass
    assert await link.call("ping") == {}


async def test_data_on_streams_that_do_not_exist_is_ignored(agent: RunningAgent, link: GuestLink) -> None:
    link.post(frame(DATA, 77, b"x") + frame(EOF, 78))
    assert await link.call("ping") == {}


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("operation", "args", "code"),
    [
        ("fly", {}, "unsupported"),
        ("start", {}, "invalid"),
        ("start", {"argv": []}, "invalid"),
        ("start", {"argv": [1]}, "invalid"),
        ("start", {"argv": ["a\0b"]}, "invalid"),
        ("start", {"argv": ["true"], "env": {"A": 1}}, "invalid"),
        ("start", {"argv": ["true"], "pty": [-1, 1]}, "invalid"),
        ("start", {"argv": ["true"], "pty": "big"}, "invalid"),
        ("signal", {"pid": "1", "signal": 9}, "invalid"),
        ("signal", {"pid": 1, "signal": 9}, "no_process"),
        ("stat", {}, "invalid"),
        ("stat", {"path": "relative"}, "invalid"),
        ("stat", {"path": "/\0"}, "invalid"),
        ("stat", {"path": "/\ud800"}, "invalid"),
        ("read", {"path": "/etc/passwd", "offset": -1}, "invalid"),
        ("connect", {"port": 0}, "invalid"),
        ("changes", {"watch": 999}, "not_found"),
    ],
)
async def test_a_bad_request_is_refused_and_the_conversation_goes_on(
    link: GuestLink, operation: str, args: dict[str, object], code: str
) -> None:
    with pytest.raises(GuestRefused) as caught:
        await link.call(operation, args)
    assert caught.value.code == code
    assert await link.call("ping") == {}


async def test_usage_is_plausible(link: GuestLink) -> None:
    usage = await link.call("usage")
    assert 0 < usage["disk_used"] <= usage["disk_total"]
    assert usage["mem_total"] > 1 << 20
    assert usage["cpus"] >= 1


async def test_hello_is_the_greeting(link: GuestLink) -> None:
    assert await link.call("hello") == link.hello
    assert len(link.hello["boot"]) == 32


@needs_root
async def test_signals_from_inside_do_not_end_the_agent(processes: GuestProcesses, link: GuestLink) -> None:
    for number in (1, 2, 3, 9, 11, 15, 17):
        output = await processes.run(Command.shell(f"kill -{number} 1"))
        assert output.status == Exited(0)
    assert await link.call("ping") == {}


async def test_running_out_of_descriptors_is_told_and_survived(make_agent: Callable[[int], RunningAgent]) -> None:
    agent = make_agent(24)
    link = await agent.link()
    processes = GuestProcesses(link, default_user="root", default_workdir="/")
    attempts = [processes.start(Command.argv("sleep", "60")) for _ in range(30)]
    outcomes = await asyncio.gather(*attempts, return_exceptions=True)
    started = [outcome for outcome in outcomes if isinstance(outcome, ProcessInfo)]
    refused = [outcome for outcome in outcomes if isinstance(outcome, ProcessFailure)]
    assert started
    assert {failure.fault for failure in refused} == {ProcessFault.LIMIT}
    with ExitStack() as open_sockets:  # those who come when no descriptor is left are hung up on
        for _ in range(30):
            late = open_sockets.enter_context(socket.socket(socket.AF_UNIX))
            late.settimeout(10)
            late.connect(agent.socket)
            await link.call("ping")
        assert late.recv(4096) == b""
        assert await link.call("ping") == {}
    assert await link.call("ping") == {}
    for info in started:
        await processes.signal(ById(info.id), Signal.KILL)
        await processes.wait(ById(info.id))
    assert (await processes.run(Command.argv("true"))).status == Exited(0)
    await link.aclose()


@pytest.mark.thorough
async def test_nothing_stays_open_after_use(agent: RunningAgent, link: GuestLink, processes: GuestProcesses) -> None:
    await processes.run(Command.argv("true"))
    before = len(os.listdir(f"/proc/{agent.pid}/fd"))
    for _ in range(30):
        await processes.run(Command(mode=Command.shell("cat").mode, stdin=b"x"))
        with pytest.raises(ProcessFailure):
            await processes.run(Command.argv("/not/there"))
    assert len(os.listdir(f"/proc/{agent.pid}/fd")) == before
