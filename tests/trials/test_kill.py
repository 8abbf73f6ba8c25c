"""The server and its helpers are killed at random instants, under load. No running sandbox is lost, nothing leaks."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress

from e2b import AsyncSandbox
from firkin.lifetimes import children
from tests.trials.conftest import Server

ROUNDS = int(os.environ.get("TRIAL_ROUNDS", "50"))
KEPT = 4
TICK = "i=0; while true; do i=$((i+1)); echo $i > /tmp/tick; sleep 0.05; done"


async def test_sandboxes_outlive_fifty_killed_servers(server: Server) -> None:
    kept = [await ticking(server) for _ in range(KEPT)]
    for _ in range(ROUNDS):
        await under_load(server, server.kill)
        await server.start()
        await all_tick(server, kept)
        await no_strangers(server, kept)


async def test_a_warm_pool_outlives_killed_servers_and_gives_nothing_twice(server: Server) -> None:
    await server.firkin("pool", "set", "base", "--depth", "5")
    kept = [await ticking(server) for _ in range(KEPT)]
    assert len(set(kept)) == KEPT
    for _ in range(ROUNDS):
        await under_load(server, server.kill)
        await server.start()
        await all_tick(server, kept)
        await no_strangers(server, kept)
    pool = json.loads(await server.firkin("pool", "set", "base", "--depth", "5", "--json"))
    assert (pool["ready"], pool["total"]) == (5, 5)
    await server.firkin("pool", "delete", "base")


async def test_sandboxes_outlive_fifty_killed_launchers(server: Server) -> None:
    kept = [await ticking(server) for _ in range(KEPT)]

    async def kill_a_helper() -> None:
        with suppress(ProcessLookupError):
            os.kill(random.choice(server.launcher_pids()), signal.SIGKILL)

    for _ in range(ROUNDS):
        await under_load(server, kill_a_helper)
        await all_tick(server, kept)
    assert await create_works(server)
    await no_strangers(server, kept)


async def ticking(server: Server) -> str:
    sandbox = await AsyncSandbox.create("base", timeout=3600, **server.sdk)
    await sandbox.commands.run(TICK, background=True, timeout=0)
    return sandbox.sandbox_id


async def under_load(server: Server, strike: Callable[[], Awaitable[None]]) -> None:
    """Creates, commands and kills go on while, at some instant, `strike` falls."""
    over = asyncio.Event()
    async with children() as clients:
        running = [clients.start(client(server, over), name=f"client {number}") for number in range(4)]
        await asyncio.sleep(random.uniform(0, 0.5))  # the random instant that the trial is about
        await strike()
        over.set()
        async with asyncio.timeout(60):
            await asyncio.gather(*running)


async def client(server: Server, over: asyncio.Event) -> None:
    while not over.is_set():
        with suppress(Exception):  # what a killed server does to a client is not the point here
            sandbox = await AsyncSandbox.create("base", timeout=60, request_timeout=5, **server.sdk)
            await sandbox.commands.run("echo hi", request_timeout=5)
            await sandbox.kill(request_timeout=5)


async def all_tick(server: Server, kept: list[str]) -> None:
    for sandbox_id in kept:
        sandbox = await AsyncSandbox.connect(sandbox_id, **server.sdk)
        before = int(await sandbox.files.read("/tmp/tick") or 0)
        async with asyncio.timeout(20):
            while int(await sandbox.files.read("/tmp/tick") or 0) <= before:  # noqa: ASYNC110 — the guest's clock
                await asyncio.sleep(0.02)


async def no_strangers(server: Server, kept: list[str]) -> None:
    """What half-finished clients left is either a sandbox that answers or nothing."""
    pages = AsyncSandbox.list(**server.sdk)
    while pages.has_next:
        for info in await pages.next_items():
            sandbox = await AsyncSandbox.connect(info.sandbox_id, **server.sdk)
            assert (await sandbox.commands.run("echo alive")).stdout == "alive\n"
            if info.sandbox_id not in kept:
                await sandbox.kill()


async def create_works(server: Server) -> bool:
    sandbox = await AsyncSandbox.create("base", **server.sdk)
    output = await sandbox.commands.run("echo hi")
    await sandbox.kill()
    return output.stdout == "hi\n"
