"""Policies over many lives: nothing is left of any, none mixes with another, and what they cost."""

from __future__ import annotations

import asyncio
import random
import statistics
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from firkin import Runtime, Sandbox
from firkin.host.firewall import COUNTED, DECIDED, OPEN, REFUSED, REFUSED_OTHER, TOLD
from firkin.host.nfnetlink import Nfnetlink
from firkin.host.reach_tables import tables
from firkin.law.ids import TemplateId
from firkin.law.network import NetworkPolicy
from firkin.law.reach import denial
from firkin.law.templates import TemplateSpec
from tests.namespaces.conftest import backend_at
from tests.namespaces.test_policy import OTHER, PRIVATE, PUBLIC, heard, python, random_policy, spec
from tests.namespaces.worlds import PORT, world

pytestmark = pytest.mark.asyncio(loop_scope="module")

CYCLES = 1000
SHOUT = f"""
import socket, sys
for address in sys.argv[1:]:
    probe = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        probe.sendto(b"x", (address, {PORT}))
    except OSError:
        pass
"""
SEND = """
import socket, sys, time
line = socket.create_connection((sys.argv[1], 8001))
line.sendall(b"x")
block, total, until = bytes(1 << 18), 0, time.monotonic() + 3
while time.monotonic() < until:
    total += line.send(block)
print(total * 8 / 3 / 1e9)
"""
SINK = """
import socket
listener = socket.create_server(("0.0.0.0", 8001))
print("ready", flush=True)
while True:
    line, _ = listener.accept()
    room = bytearray(1 << 20)
    while line.recv_into(room):
        pass
"""


@pytest.fixture(scope="module", autouse=True)
def outside() -> Iterator[str]:
    with world() as name:
        yield name


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def runtime(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Runtime]:
    async with Runtime.open(backend_at(tmp_path_factory.mktemp("state")), kill_all=True) as opened:
        await opened.templates.prepare(TemplateSpec.host(id=TemplateId("base")))
        yield opened


async def test_a_thousand_lives_with_random_policies_leave_nothing(runtime: Runtime) -> None:
    chance = random.Random(23)
    for _ in range(CYCLES // 4):
        await asyncio.gather(*(_life(runtime, random_policy(chance)) for _ in range(4)))
    for _ in range(100):
        if not (left := leftovers()):
            return
        await asyncio.sleep(0.1)
    raise AssertionError(left)


async def _life(runtime: Runtime, policy: NetworkPolicy) -> None:
    async with await runtime.sandboxes.create(spec(**{name: getattr(policy, name) for name in _NAMES})) as sandbox:
        await sandbox.exec(python(SHOUT, PUBLIC, OTHER, PRIVATE))


_NAMES = ("internet", "allow_out", "deny_out")


def leftovers() -> list[str]:
    """Tables, elements of the shared sets, groups and connections of any sandbox."""
    kernel = Nfnetlink()
    found = [f"table {interface}" for interface in tables(kernel)]
    kernel.close()
    for name in (COUNTED, TOLD, REFUSED, REFUSED_OTHER, OPEN):
        listed = subprocess.run(
            ["nft", "list", "set", "inet", "firkin", name], capture_output=True, text=True, check=True
        )
        found += [f"{name}: {line.strip()}" for line in listed.stdout.splitlines() if "198.18." in line]
    found += [row for row in Path("/proc/net/nf_conntrack").read_text().splitlines() if "src=198.18." in row]
    listed = subprocess.run(
        ["ip", "-o", "link", "show", "group", str(DECIDED)], capture_output=True, text=True, check=True
    )
    return found + listed.stdout.splitlines()


async def test_a_hundred_sandboxes_with_policies_of_their_own_do_not_mix(runtime: Runtime) -> None:
    chance = random.Random(100)
    policies = [random_policy(chance) for _ in range(100)]
    boxes = [await runtime.sandboxes.create(spec(**{n: getattr(one, n) for n in _NAMES})) for one in policies]
    try:
        asked = [PUBLIC, OTHER, PRIVATE, *(f"9.9.{chance.randrange(256)}.7" for _ in range(8))]
        for box, policy in zip(boxes, policies, strict=True):
            wanted = {address for address in asked if not denial(policy, address)}
            assert await heard(box, *asked, patience=0.3) == wanted, policy
        took = [await _timed_update(box, random_policy(chance)) for box in boxes]
        print(f"update with 100 policies: p50 {statistics.median(took):.2f} ms, p99 {sorted(took)[98]:.2f} ms")
        assert statistics.median(took) < 50
    finally:
        for box in boxes:
            await box.delete(force=True)


async def _timed_update(box: Sandbox, policy: NetworkPolicy) -> float:
    began = time.perf_counter()
    await box.update_network(policy)
    return (time.perf_counter() - began) * 1000


async def test_a_policy_costs_a_create_little(runtime: Runtime) -> None:
    took: dict[bool, list[float]] = {True: [], False: []}
    for number in range(60):
        finer = number % 2 == 0
        began = time.perf_counter()
        box = await runtime.sandboxes.create(spec(internet=True, deny_out=(OTHER,) if finer else ()))
        took[finer].append((time.perf_counter() - began) * 1000)
        await box.delete(force=True)
    plain, finer_ms = statistics.median(took[False]), statistics.median(took[True])
    print(f"create: plain {plain:.2f} ms, with a policy {finer_ms:.2f} ms")
    assert finer_ms - plain < 5


@pytest.fixture
def sink(outside: str) -> Iterator[None]:
    """Something outside that takes whatever comes on TCP port 8001."""
    words = ["ip", "netns", "exec", outside, "/usr/bin/python3", "-c", SINK]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield
        process.kill()


async def test_most_of_the_throughput_is_left(runtime: Runtime, sink: None) -> None:
    async with await runtime.sandboxes.create(spec(internet=True)) as box:
        rates: dict[bool, list[float]] = {True: [], False: []}
        wide = tuple(f"9.{number}.0.0/24" for number in range(20, 220))
        for number in range(6):
            finer = number % 2 == 0
            await box.update_network(NetworkPolicy(internet=True, deny_out=wide if finer else ()))
            rates[finer].append(float((await box.exec(python(SEND, PUBLIC))).stdout))
    without, through = statistics.median(rates[False]), statistics.median(rates[True])
    print(f"TCP: {without:.2f} Gbit/s without, {through:.2f} with 200 denied networks")
    assert through >= 0.8 * without
