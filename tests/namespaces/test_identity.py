"""Who a sandbox is, as it sees itself; a hostile image cannot turn the writing of that against us."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from firkin.testing.conversation import Conversation
from firkin.testing.driver_suite import said
from tests.namespaces.alone import Alone, driver_alone
from tests.namespaces.conftest import Shell

pytestmark = pytest.mark.asyncio(loop_scope="module")
BOOT_ID = "/proc/sys/kernel/random/boot_id"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def alone(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Alone]:
    async with driver_alone(tmp_path_factory.mktemp("identity")) as started:
        yield started


async def test_sudo_knows_the_host_that_it_is_on(alone: Alone) -> None:
    instance = await alone.boot("sudoer")
    async with await Conversation.open(await instance.dial()) as talk:
        stream = await talk.request(
            "start", argv=["sudo", "-n", "true"], env={}, cwd="", user="user", stdin=False, pty=None
        )
        answer = await talk.finished(stream)
    assert answer.result == {"exit": 0}
    assert bytes(answer.stderr) == b""
    assert "127.0.1.1" in await said(instance, "getent ahosts sudoer")
    await instance.destroy()


async def test_the_boot_id_is_nobody_elses_and_cannot_be_written(alone: Alone) -> None:
    instance = await alone.boot("booted")
    mine = await said(instance, f"cat {BOOT_ID}")
    assert uuid.UUID(mine.strip()).version == 4
    assert mine.strip() != Path(BOOT_ID).read_text().strip()
    attempts = (f"echo x > {BOOT_ID}", f"chmod 777 {BOOT_ID}", f"umount {BOOT_ID}", f"mount -o remount,rw {BOOT_ID}")
    for attempt in attempts:
        assert await said(instance, f"({attempt}) 2>/dev/null; [ $? != 0 ]") == ""
    assert await said(instance, f"cat {BOOT_ID}") == mine
    assert "boot-id" not in await said(instance, "ls -A /dev")
    one, two = (await said(instance, "cat /proc/sys/kernel/random/uuid; cat /proc/sys/kernel/random/uuid")).split()
    assert one != two
    await instance.destroy()


async def test_a_fork_keeps_no_name_and_no_random_seed_of_its_source(alone: Alone) -> None:
    source = await alone.driver.boot(replace(alone.plan("source"), machine_id="1" * 32))
    await said(
        source, "mkdir -p /var/lib/systemd; echo seed > /var/lib/systemd/random-seed; echo 1.2.3.4 a >> /etc/hosts"
    )
    into = alone.folder("source.d")
    await source.capture(into, room_bytes=1 << 40)
    fork = await alone.driver.boot(replace(alone.plan("fork"), machine_id="2" * 32, captured=str(into)))
    assert await said(fork, "hostname; cat /etc/hostname /etc/machine-id") == "fork\nfork\n" + "2" * 32 + "\n"
    hosts = await said(fork, "cat /etc/hosts")
    assert "source" not in hosts
    assert "1.2.3.4 a" in hosts
    assert "127.0.1.1\tfork" in hosts
    assert await said(fork, "ls /var/lib/systemd") == ""
    await fork.destroy()
    await source.destroy()


async def test_what_a_continued_sandbox_has_made_of_its_own_files_stays(alone: Alone) -> None:
    first = await alone.boot("stays")
    await said(first, "mkdir -p /var/lib/systemd; echo seed > /var/lib/systemd/random-seed; chmod 640 /etc/hosts")
    await first.destroy()
    again = await alone.driver.boot(replace(alone.plan("stays"), continues=True))
    assert await said(again, "cat /var/lib/systemd/random-seed; stat -c %a /etc/hosts") == "seed\n640\n"
    await again.destroy()


@pytest.mark.parametrize(
    "trap",
    [
        "for n in $(seq 3 20); do ln -sf /proc/self/fd/$n /etc/hostname; done",
        "ln -sf /proc/self/fd/4 /etc/hosts",
        "ln -sf /proc/self/fd/3 /etc/hostname; ln -sf /proc/self/fd/4 /etc/machine-id",
        "ln -sf /proc/self/mem /etc/machine-id; ln -sf /dev/full /etc/hosts",
        "rm /etc/hostname; mkfifo /etc/hostname; rm /etc/hosts; mkfifo /etc/hosts",
        "rm -rf /etc/hostname; mkdir -p /etc/hostname/a",
        "rm /etc/hosts; ln -s /proc/kmsg /etc/hosts",
        "rm -rf /etc; ln -s /proc/self/fd /etc",
        "head -c 3000000 /dev/zero > /etc/hosts",
        "rm -rf /var/lib/systemd; ln -s /proc /var/lib/systemd",
        "cat /dev/zero > /root/full || true",
    ],
)
async def test_a_hostile_disk_only_hurts_itself(alone: Alone, trap: str) -> None:
    source = await alone.boot("trap")
    await said(source, f"({trap}) 2>/dev/null; true")
    into = alone.folder(f"trap{abs(hash(trap))}")
    await source.capture(into, room_bytes=1 << 40)
    fork = await alone.driver.boot(replace(alone.plan("trapped"), machine_id="2" * 32, captured=str(into)))
    assert await said(fork, "hostname") == "trapped\n"
    for instance in (fork, source):
        await instance.destroy()
        await alone.driver.discard(instance.sandbox_id)


async def test_the_runtime_gives_each_sandbox_its_own(shell: Shell) -> None:
    outcome = await shell("cat /etc/hostname; hostname; sudo -n true")
    names = outcome.stdout.decode().split()
    assert names[0] == names[1]
    assert outcome.stderr == b""
