"""The server is killed at random instants amid pauses, resumptions, snapshots and forks. Nothing is lost or stuck."""

from __future__ import annotations

import asyncio
import hashlib
import random
import secrets
from contextlib import suppress
from dataclasses import dataclass, field

from e2b import AsyncSandbox
from firkin.lifetimes import children
from tests.trials.conftest import Server
from tests.trials.test_kill import ROUNDS, create_works, no_strangers

KEPT = 4
CONTENT = "/home/user/content"


@dataclass
class Life:
    """One sandbox that must survive, and what must be in it. `snapshots` were made of it."""

    sandbox_id: str
    digest: str
    snapshots: set[str] = field(default_factory=set)


async def test_no_pause_snapshot_or_fork_is_half_done_after_a_kill(server: Server) -> None:
    lives = [await begin(server) for _ in range(KEPT)]
    for _ in range(ROUNDS):
        over = asyncio.Event()
        async with children() as owners:
            running = [owners.start(owner(server, life, over), name=f"owner of {life.sandbox_id}") for life in lives]
            await asyncio.sleep(random.uniform(0, 0.4))  # the random instant that the trial is about
            await server.kill()
            over.set()
            async with asyncio.timeout(60):
                await asyncio.gather(*running)
        await server.start()
        for life in lives:
            await is_whole(server, life)
        await no_strangers(server, [life.sandbox_id for life in lives])
    for life in lives:
        for snapshot_id in life.snapshots:
            made = await AsyncSandbox.create(snapshot_id, timeout=60, **server.sdk)
            assert await digest_in(made) == life.digest
            await made.kill()
    assert await create_works(server)


async def begin(server: Server) -> Life:
    sandbox = await AsyncSandbox.create("base", timeout=3600, **server.sdk)
    data = secrets.token_bytes(300_000)
    await sandbox.files.write(CONTENT, data)
    return Life(sandbox.sandbox_id, hashlib.sha256(data).hexdigest())


async def owner(server: Server, life: Life, over: asyncio.Event) -> None:
    """Does at random what an owner can do, until the server is gone."""
    while not over.is_set():
        with suppress(Exception):  # what a killed server does to a client is not the point here
            sandbox = await AsyncSandbox.connect(life.sandbox_id, timeout=3600, request_timeout=5, **server.sdk)
            match random.randrange(4):
                case 0:
                    await sandbox.pause(request_timeout=5)
                case 1:
                    await sandbox.pause(keep_memory=False, request_timeout=5)
                case 2:
                    snapshot = await sandbox.create_snapshot(request_timeout=5)
                    life.snapshots.add(snapshot.snapshot_id)
                case 3:
                    for fork in await sandbox.fork(timeout=60, request_timeout=5):
                        if isinstance(fork, AsyncSandbox):
                            await fork.kill(request_timeout=5)


async def is_whole(server: Server, life: Life) -> None:
    """It is there, runs or can be resumed, and its files are what they were."""
    sandbox = await AsyncSandbox.connect(life.sandbox_id, timeout=3600, **server.sdk)
    assert await digest_in(sandbox) == life.digest
    known = set()
    pages = AsyncSandbox.list_snapshots(sandbox_id=life.sandbox_id, **server.sdk)
    while pages.has_next:
        known |= {info.snapshot_id for info in await pages.next_items()}
    assert life.snapshots <= known, "a snapshot that was answered for is gone"
    for extra in known - life.snapshots:  # made, but the answer was lost with the server
        await AsyncSandbox.delete_snapshot(extra, **server.sdk)
    while len(life.snapshots) > 3:
        await AsyncSandbox.delete_snapshot(life.snapshots.pop(), **server.sdk)


async def digest_in(sandbox: AsyncSandbox) -> str:
    return (await sandbox.commands.run(f"sha256sum {CONTENT}")).stdout.split()[0]
