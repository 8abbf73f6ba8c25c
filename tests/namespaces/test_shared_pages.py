"""An agent with nothing to do gives its launcher's pages back, and goes on as before."""

from __future__ import annotations

import asyncio
import os
import re
from pathlib import Path

import pytest

from firkin.guest import shared_pages
from firkin.guest.loop import IDLE_S
from firkin.testing.conversation import Conversation
from tests.namespaces.alone import driver_alone

pytestmark = [
    pytest.mark.asyncio,
    pytest.mark.skipif(
        os.uname().machine not in shared_pages._CODE, reason="there is no machine code for this processor"
    ),
]


def _own_kb(pid: int) -> int:
    found = re.search(r"Private_Dirty: +(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text())
    assert found is not None
    return int(found[1])


async def _falls_below(kb: float, pid: int) -> int:
    async with asyncio.timeout(10):
        while True:
            if (own := _own_kb(pid)) < kb:
                return own
            await asyncio.sleep(0.05)


async def test_at_rest_an_agent_has_fewer_pages_of_its_own(tmp_path: Path) -> None:
    async with driver_alone(tmp_path) as alone:
        instance = await alone.boot("rests")
        pid = int(instance.ref.facts["pid"])
        async with await Conversation.open(await instance.dial()) as talk:
            for _ in range(3):
                assert (await talk.run("/bin/echo", "hello")).stdout == b"hello\n"
                busy = _own_kb(pid)
                assert await _falls_below(0.9 * busy, pid) > 0
        await instance.destroy()
        await alone.driver.discard(instance.sandbox_id)


async def test_time_that_passes_at_rest_costs_no_page(tmp_path: Path) -> None:
    async with driver_alone(tmp_path) as alone:
        instance = await alone.boot("passes")
        pid = int(instance.ref.facts["pid"])
        async with await Conversation.open(await instance.dial()) as talk:
            await talk.run("/bin/echo", "hello")  # how it ended is kept for a while: there is a timer
            async with asyncio.timeout(10):
                while not _rests(pid):  # noqa: ASYNC110 — another process
                    await asyncio.sleep(0.02)
            resting = _own_kb(pid)
            await asyncio.sleep(2.5)  # two ticks: that nothing happens takes time to see
            assert _rests(pid)
            assert _own_kb(pid) == resting
            assert (await talk.run("/bin/echo", "again")).stdout == b"again\n"
        await instance.destroy()
        await alone.driver.discard(instance.sandbox_id)


def _rests(pid: int) -> bool:
    """Whether it is in the call that only the machine code makes: epoll_pwait of x86-64."""
    return Path(f"/proc/{pid}/syscall").read_text().split()[0] == "281"


async def test_whoever_waits_for_a_first_command_keeps_its_pages(tmp_path: Path) -> None:
    async with driver_alone(tmp_path) as alone:
        instance = await alone.boot("waits")
        pid = int(instance.ref.facts["pid"])
        async with await Conversation.open(await instance.dial()) as talk:
            about: dict[str, object] = {"env": {}, "cwd": "/", "user": "", "stdin": False, "pty": None}
            number = await talk.request("start", argv=["/bin/echo"], rehearsal=True, **about)
            assert (await talk.finished(number)).result == {"exit": 0}
            waiting = _own_kb(pid)
            await asyncio.sleep(4 * IDLE_S)  # that nothing happens takes time to see
            assert _own_kb(pid) > 0.95 * waiting
            assert (await talk.run("/bin/echo", "hello")).stdout == b"hello\n"
            assert await _falls_below(0.9 * waiting, pid) > 0
        await instance.destroy()
        await alone.driver.discard(instance.sandbox_id)


async def test_programs_that_end_while_their_agent_goes_to_rest_are_all_seen_to_end(tmp_path: Path) -> None:
    async with driver_alone(tmp_path) as alone:
        instance = await alone.boot("ends")
        async with await Conversation.open(await instance.dial()) as talk:
            for turn in range(12):
                asked = [
                    await talk.request(
                        "start",
                        argv=["/bin/sh", "-c", f"sleep 0.{at}; echo {at}"],
                        env={},
                        cwd="",
                        user="",
                        stdin=False,
                        pty=None,
                    )
                    for at in (240 + turn, 246 + turn, 252 + turn)
                ]
                said = [(await talk.finished(number)).stdout for number in asked]
                assert said == [b"%d\n" % at for at in (240 + turn, 246 + turn, 252 + turn)]
        await instance.destroy()
        await alone.driver.discard(instance.sandbox_id)


async def test_nothing_inside_can_open_what_agents_share(tmp_path: Path) -> None:
    async with driver_alone(tmp_path) as alone:
        instance = await alone.boot("looks")
        async with await Conversation.open(await instance.dial()) as talk:
            look = "ls /proc/1/fd /proc/1/map_files; cat /proc/1/maps /proc/1/pagemap | head -c 1; ls -l /proc/self/fd"
            answer = await talk.run("/bin/sh", "-c", look)
            assert b"launcher" not in answer.stdout
            assert answer.stderr.count(b"Permission denied") == 4
        await instance.destroy()
        await alone.driver.discard(instance.sandbox_id)
