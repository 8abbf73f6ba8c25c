"""What a sandbox may reach, by address, and how that changes. The outside is a namespace of the tests' own."""

from __future__ import annotations

import asyncio
import random
import re
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from firkin import Runtime, Sandbox
from firkin.drivers.ground.numbers import SlotNumbers
from firkin.host.nfnetlink import Nfnetlink
from firkin.host.reach_tables import tables
from firkin.law.capabilities import CapabilityName
from firkin.law.errors import BackendFailure, UnsupportedCapability
from firkin.law.ids import TemplateId
from firkin.law.network import NetworkPolicy
from firkin.law.network_use import NetworkUse
from firkin.law.processes import Argv, Command, ProcessStream
from firkin.law.reach import denial
from firkin.law.sandboxes import SandboxInfo, SandboxSpec
from firkin.law.snapshots import ForkOptions
from firkin.law.templates import TemplateSpec
from tests.namespaces.conftest import backend_at
from tests.namespaces.worlds import PORT, world

pytestmark = pytest.mark.asyncio(loop_scope="module")

PUBLIC, OTHER, PRIVATE, METADATA = "9.9.9.9", "9.9.8.8", "10.77.0.5", "169.254.169.254"
EVERYWHERE = "0.0.0.0/0"

PROBE = """
import select, socket, sys, time
probe = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
wanted, heard = sys.argv[1:], set()
for address in wanted * 2:
    try:
        probe.sendto(address.encode(), (address, {port}))
    except OSError:
        pass
until = time.monotonic() + {patience}
while (left := until - time.monotonic()) > 0 and len(heard) < len(set(wanted)):
    if select.select([probe], [], [], left)[0]:
        heard.add(probe.recv(2048).decode())
print(*sorted(heard))
"""

# Keeps one connection and says each second's quarter whether it still carries bytes.
TALK = """
import socket, time
line = socket.create_connection(("{address}", 8000), 3)
line.settimeout(0.3)
while True:
    try:
        line.sendall(b"x")
        print("alive" if line.recv(1) else "closed", flush=True)
    except OSError:
        print("silent", flush=True)
    time.sleep(0.05)
"""


@pytest.fixture(scope="module", autouse=True)
def outside() -> Iterator[str]:
    with world() as name:
        yield name


def python(text: str, *arguments: str, user: str | None = None) -> Command:
    return Command(mode=Argv("/usr/bin/python3", ("-c", text, *arguments)), user=user)


async def heard(sandbox: Sandbox, *addresses: str, port: int = PORT, patience: float = 0.4) -> set[str]:
    """Those that answer."""
    probe = PROBE.format(port=port, patience=patience)
    return set((await sandbox.exec(python(probe, *addresses))).stdout.decode().split())


def spec(**policy: object) -> SandboxSpec:
    return SandboxSpec.from_template("base", network=NetworkPolicy(**policy))  # type: ignore[arg-type]  # its fields


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def box(runtime: Runtime) -> AsyncIterator[Sandbox]:
    """One whose policy each test sets."""
    async with await runtime.sandboxes.create(spec(internet=True)) as sandbox:
        yield sandbox


@pytest.mark.parametrize(
    ("policy", "reached"),
    [
        (NetworkPolicy(), set()),
        (NetworkPolicy(internet=True), {PUBLIC, OTHER}),
        (NetworkPolicy(allow_out=(PUBLIC,)), {PUBLIC}),
        (NetworkPolicy(allow_out=("9.9.8.0/24",)), {OTHER}),
        (NetworkPolicy(internet=True, deny_out=(PUBLIC,)), {OTHER}),
        (NetworkPolicy(internet=True, deny_out=("9.9.0.0/16",), allow_out=(OTHER,)), {OTHER}),
        (NetworkPolicy(internet=True, deny_out=(EVERYWHERE,)), set()),
        (NetworkPolicy(internet=True, allow_out=(EVERYWHERE,)), {PUBLIC, OTHER}),
        (NetworkPolicy(internet=True, deny_out=(EVERYWHERE,), allow_out=(EVERYWHERE,)), {PUBLIC, OTHER}),
        (NetworkPolicy(allow_out=(PRIVATE,)), {PRIVATE}),
        (NetworkPolicy(internet=True, allow_out=("10.0.0.0/8",), deny_out=(PRIVATE,)), {PUBLIC, OTHER, PRIVATE}),
        (NetworkPolicy(internet=True, allow_out=(METADATA,), deny_out=(EVERYWHERE,)), {METADATA}),
        (NetworkPolicy(allow_out=("8.0.0.0/6",)), {PUBLIC, OTHER}),
    ],
    ids=str,
)
async def test_what_a_policy_allows_is_reached_and_nothing_else(
    box: Sandbox, policy: NetworkPolicy, reached: set[str]
) -> None:
    await box.update_network(policy)
    assert await heard(box, PUBLIC, OTHER, PRIVATE, METADATA) == reached


async def test_a_policy_holds_from_the_first_moment(runtime: Runtime) -> None:
    async with await runtime.sandboxes.create(spec(allow_out=(PUBLIC, PRIVATE))) as sandbox:
        assert await heard(sandbox, PUBLIC, OTHER, PRIVATE, METADATA) == {PUBLIC, PRIVATE}


async def test_the_host_is_out_of_reach_even_when_it_is_named(box: Sandbox) -> None:
    await box.update_network(NetworkPolicy(internet=True, allow_out=("9.8.7.1", "198.18.0.0/15", "127.0.0.0/8")))
    listener = await asyncio.get_running_loop().create_datagram_endpoint(Echo, local_addr=("0.0.0.0", 8123))
    try:
        use = (await box.network()).use
        assert use is not None
        gateway = use.address.rsplit(".", 1)[0] + "." + str(int(use.address.rsplit(".", 1)[1]) - 1)
        assert await heard(box, "9.8.7.1", gateway, "0.0.0.0", port=8123) == set()
    finally:
        listener[0].close()


class Echo(asyncio.DatagramProtocol):
    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]  # datagrams
        self.transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.transport.sendto(data, addr)


ECHO = """
import socket
echo = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
echo.bind(("0.0.0.0", 8000))
print("ready", flush=True)
while True:
    data, peer = echo.recvfrom(2048)
    echo.sendto(data, peer)
"""


async def echoing(sandbox: Sandbox) -> str:
    """The address of a sandbox that answers on port 8000 from here on."""
    stream = await sandbox.process.stream(python(ECHO))
    await said(stream, b"ready")
    await stream.aclose()
    use = (await sandbox.network()).use
    assert use is not None
    return use.address


async def said(stream: ProcessStream, wanted: bytes, *, within_s: float = 5.0) -> float:
    """Seconds until the program says `wanted`."""
    began = time.monotonic()
    async with asyncio.timeout(within_s):
        async for event in stream:
            if wanted in getattr(event, "data", b""):
                return time.monotonic() - began
    raise AssertionError(f"it ended without saying {wanted!r}")


async def test_another_sandbox_is_out_of_reach_even_when_its_address_is_named(runtime: Runtime, box: Sandbox) -> None:
    async with await runtime.sandboxes.create(spec(internet=True, allow_out=("198.18.0.0/15",))) as other:
        address = await echoing(other)
        await box.update_network(NetworkPolicy(internet=True, allow_out=(address, "198.18.0.0/15")))
        assert await heard(box, address) == set()


async def test_two_sandboxes_with_different_policies_do_not_mix(runtime: Runtime, box: Sandbox) -> None:
    await box.update_network(NetworkPolicy(allow_out=(PUBLIC,)))
    async with (
        await runtime.sandboxes.create(spec(allow_out=(OTHER, PRIVATE))) as second,
        await runtime.sandboxes.create(spec(internet=True)) as third,
    ):
        found = await asyncio.gather(*(heard(one, PUBLIC, OTHER, PRIVATE) for one in (box, second, third)))
    assert found == [{PUBLIC}, {OTHER, PRIVATE}, {PUBLIC, OTHER}]


def random_policy(chance: random.Random) -> NetworkPolicy:
    def some(most: int) -> tuple[str, ...]:
        base = ("9.9", "10.77", "192.168.77", "169.254.169")
        networks = []
        for _ in range(chance.randrange(most)):
            head = chance.choice(base)
            parts = [*head.split("."), *(str(chance.randrange(256)) for _ in range(3 - head.count(".")))]
            networks.append(f"{'.'.join(parts)}/{chance.choice((0, 8, 12, 16, 20, 24, 28, 32))}")
        return tuple(networks)

    return NetworkPolicy(internet=chance.random() < 0.6, allow_out=some(6), deny_out=some(6))


async def test_a_hundred_policies_allow_what_the_law_says(box: Sandbox) -> None:
    chance = random.Random(20261128)
    for _ in range(100):
        policy = random_policy(chance)
        named = [text.split("/")[0] for text in (*policy.allow_out, *policy.deny_out)]
        drawn = [f"9.9.{chance.randrange(256)}.{chance.randrange(256)}" for _ in range(4)]
        drawn += [f"10.77.{chance.randrange(256)}.{chance.randrange(256)}" for _ in range(4)]
        asked = [one for one in {*named, *drawn, METADATA, PUBLIC} if not one.startswith("169.254") or one == METADATA]
        wanted = {address for address in asked if not denial(policy, address)}
        await box.update_network(policy)
        assert await heard(box, *asked, patience=0.12 if wanted != set(asked) else 1.0) == wanted, policy


@pytest.mark.parametrize("after", [NetworkPolicy(), NetworkPolicy(allow_out=(OTHER,))], ids=str)
async def test_an_open_connection_is_cut_as_soon_as_it_is_no_longer_allowed(box: Sandbox, after: NetworkPolicy) -> None:
    await box.update_network(NetworkPolicy(internet=True))
    doomed = await box.process.stream(python(TALK.format(address=PUBLIC)))
    await said(doomed, b"alive")
    began = time.monotonic()
    await box.update_network(after)
    assert time.monotonic() - began < 0.5  # 50 ms on a quiet machine: see the benchmark
    assert await said(doomed, b"silent") < 1.0
    assert connections(await address_of(box), PUBLIC) == 0
    await doomed.aclose()


async def test_an_open_connection_that_stays_allowed_goes_on(box: Sandbox) -> None:
    await box.update_network(NetworkPolicy(internet=True))
    kept = await box.process.stream(python(TALK.format(address=OTHER)))
    await said(kept, b"alive")
    await box.update_network(NetworkPolicy(allow_out=(OTHER,)))
    await box.update_network(NetworkPolicy(internet=True, deny_out=(PUBLIC,)))
    with pytest.raises(TimeoutError):
        await said(kept, b"silent", within_s=1.0)
    await kept.aclose()


async def address_of(sandbox: Sandbox) -> str:
    use = (await sandbox.network()).use
    assert use is not None
    return use.address


def connections(source: str, destination: str = "") -> int:
    """In the machine's table."""
    rows = Path("/proc/net/nf_conntrack").read_text().splitlines()
    return sum(f"src={source} dst={destination}" in row for row in rows)


async def test_peers_reach_each_other_only_while_both_say_so(runtime: Runtime) -> None:
    async with (
        await runtime.sandboxes.create(spec()) as first,
        await runtime.sandboxes.create(spec(peers=(str(first.id),))) as second,
    ):
        addresses = [await echoing(first), await echoing(second)]

        async def reach() -> list[set[str]]:
            return [await heard(first, *addresses[1:]), await heard(second, *addresses[:1])]

        assert await reach() == [set(), set()]
        await first.update_network(NetworkPolicy(peers=(str(second.id),)))
        assert await reach() == [{addresses[1]}, {addresses[0]}]
        async with await runtime.sandboxes.create(spec(internet=True, peers=(str(first.id),))) as stranger:
            assert await heard(stranger, *addresses) == set()
        await second.update_network(NetworkPolicy(internet=True))
        assert await reach() == [set(), set()]


async def test_whoever_gets_the_address_of_a_peer_that_has_gone_is_no_peer(runtime: Runtime) -> None:
    async with await runtime.sandboxes.create(spec()) as first:
        second = await runtime.sandboxes.create(spec(peers=(str(first.id),)))
        await first.update_network(NetworkPolicy(peers=(str(second.id),)))
        address = await echoing(second)
        assert await heard(first, address) == {address}
        await second.delete(force=True)
        for _ in range(8):  # whatever slot it is that comes next
            async with await runtime.sandboxes.create(spec(internet=True)) as heir:
                await echoing(heir)
                assert await heard(first, address, patience=0.2) == set()


async def test_ipv6_is_refused_with_the_reason(runtime: Runtime, box: Sandbox) -> None:
    for policy in (NetworkPolicy(internet=True, allow_out=("2001:db8::/32",)),):
        with pytest.raises(UnsupportedCapability) as refused:
            await runtime.sandboxes.create(SandboxSpec.from_template("base", network=policy))
        assert refused.value.capability is CapabilityName.NETWORK_POLICY
        with pytest.raises(UnsupportedCapability):
            await box.update_network(policy)


async def test_what_was_refused_is_counted_and_explained(runtime: Runtime) -> None:
    async with await runtime.sandboxes.create(spec(internet=True, deny_out=("9.9.8.0/24",))) as sandbox:
        assert await heard(sandbox, PUBLIC, OTHER, PRIVATE) == {PUBLIC}
        use = await settled_use(sandbox, flows=2)
        found = {(flow.destination, flow.protocol, flow.port): flow.rule for flow in use.refused}
        assert found[OTHER, "udp", PORT] == "deny_out 9.9.8.0/24"
        assert "private" in found[PRIVATE, "udp", PORT]
        assert use.packets_refused >= 4
        assert use.packets_out >= 6
        assert use.packets_in >= 2
        assert await logged(sandbox, f"refused: udp to {OTHER} port 8000: deny_out 9.9.8.0/24")


async def test_a_sandbox_without_internet_is_told_why_as_well(runtime: Runtime) -> None:
    async with await runtime.sandboxes.create(spec()) as sandbox:
        assert await heard(sandbox, PUBLIC) == set()
        use = await settled_use(sandbox, flows=1)
        assert [(flow.destination, flow.rule) for flow in use.refused] == [(PUBLIC, "no internet access")]


async def settled_use(sandbox: Sandbox, *, flows: int) -> NetworkUse:
    for _ in range(40):
        use = (await sandbox.network()).use
        if use is not None and len(use.refused) >= flows:
            return use
        await asyncio.sleep(0.1)
    raise AssertionError("the refused flows are not told")


async def logged(sandbox: Sandbox, wanted: str) -> bool:
    for _ in range(40):
        if any(wanted in entry.message for entry in await sandbox.logs()):
            return True
        await asyncio.sleep(0.1)
    return False


FLOOD = """
import socket
probe = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for number in range(20000):
    try:
        probe.sendto(b"x", (f"10.77.{number // 250 % 250}.{number % 250}", number % 60000 + 1))
    except OSError:
        pass
"""


async def test_a_flood_of_refused_packets_takes_little_room_and_hides_nobody_else_s(
    runtime: Runtime, box: Sandbox
) -> None:
    await box.update_network(NetworkPolicy())
    async with await runtime.sandboxes.create(spec(internet=True)) as hostile:
        await hostile.exec(python(FLOOD))
        await heard(box, PUBLIC)
        use = await settled_use(hostile, flows=1)
        assert use.packets_refused >= 10000
        assert len(use.refused) <= 64
        assert any(flow.destination == PUBLIC for flow in (await settled_use(box, flows=1)).refused)
        await asyncio.sleep(1.5)
        lines = [entry for entry in await hostile.logs() if entry.message.startswith("refused")]
        assert 0 < len(lines) <= 10


async def test_a_policy_that_cannot_be_put_in_force_leaves_nothing_to_reach(runtime: Runtime) -> None:
    """A table of that name that belongs to another program is one that the kernel lets nobody else change."""
    async with await runtime.sandboxes.create(spec(internet=True)) as sandbox:
        assert await heard(sandbox, PUBLIC, OTHER) == {PUBLIC, OTHER}
        interface = interface_of(await address_of(sandbox))
        with owned_table(f"firkin-{interface}"):
            with pytest.raises(BackendFailure, match="could not be put in force"):
                await sandbox.update_network(NetworkPolicy(allow_out=(PUBLIC,)))
            assert await heard(sandbox, PUBLIC, OTHER) == set()
            network = await sandbox.network()
            assert network.policy == NetworkPolicy(internet=True)
            assert network.use is not None
            assert "reaches nothing" in network.use.trouble
        await sandbox.update_network(NetworkPolicy(allow_out=(PUBLIC,)))
        assert await heard(sandbox, PUBLIC, OTHER) == {PUBLIC}


def interface_of(address: str) -> str:
    return next(numbers.interface for slot in range(4032) if (numbers := SlotNumbers(slot)).guest_address == address)


@contextmanager
def owned_table(name: str) -> Iterator[None]:
    """A netdev table that belongs to a running nft, and ends with it."""
    nft = subprocess.Popen(["nft", "-i"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert nft.stdin is not None
    nft.stdin.write(f"add table netdev {name} {{ flags owner; }}\n".encode())
    nft.stdin.flush()
    try:
        wait_for_table(name, there=True)
        yield
    finally:
        nft.kill()
        nft.wait()
        nft.stdin.close()
        wait_for_table(name, there=False)


def wait_for_table(name: str, *, there: bool) -> None:
    kernel, until = Nfnetlink(), time.monotonic() + 5
    while (name.removeprefix("firkin-") in tables(kernel)) is not there and time.monotonic() < until:
        time.sleep(0.02)
    kernel.close()


async def test_nothing_of_a_sandbox_s_network_is_left_for_the_next(runtime: Runtime) -> None:
    for _ in range(6):
        async with await runtime.sandboxes.create(spec(allow_out=(PUBLIC, PRIVATE), internet=False)) as sandbox:
            address = await address_of(sandbox)
            assert await heard(sandbox, PUBLIC, OTHER, PRIVATE) == {PUBLIC, PRIVATE}
        await gone(address)
        async with await runtime.sandboxes.create(spec(internet=True)) as heir:
            assert await heard(heir, PUBLIC, OTHER, PRIVATE) == {PUBLIC, OTHER}


async def gone(address: str) -> None:
    """Until table, group, connections and elements of the sandbox that had this address are away."""
    for _ in range(100):
        left = leftovers(address)
        if not left:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(left)


def leftovers(address: str) -> list[str]:
    interface = interface_of(address)
    listed = subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=True).stdout
    own = re.compile(rf"firkin-{interface} |(?<! \. ){re.escape(address)}\b")  # not where others wanted to go to it
    found = [line.strip() for line in listed.splitlines() if own.search(line)]
    found += [row for row in Path("/proc/net/nf_conntrack").read_text().splitlines() if f"src={address} " in row]
    group = Path(f"/sys/class/net/{interface}/netdev_group")
    if group.exists() and group.read_text().strip() == "26218":
        found.append("the interface's group")
    return found


async def test_a_policy_lives_through_a_pause_and_can_be_changed_meanwhile(runtime: Runtime) -> None:
    async with await runtime.sandboxes.create(spec(allow_out=(PUBLIC,))) as sandbox:
        await sandbox.pause()
        await sandbox.update_network(NetworkPolicy(allow_out=(OTHER,)))
        await sandbox.resume()
        assert await heard(sandbox, PUBLIC, OTHER) == {OTHER}
        await sandbox.pause(keep_memory=False)
        assert (await sandbox.network()).use is None
        await sandbox.update_network(NetworkPolicy(allow_out=(PRIVATE,)))
        await sandbox.resume()
        assert await heard(sandbox, PUBLIC, OTHER, PRIVATE) == {PRIVATE}


async def test_forks_and_snapshots_have_the_policy_in_force(runtime: Runtime) -> None:
    async with await runtime.sandboxes.create(spec(internet=True)) as sandbox:
        await sandbox.update_network(NetworkPolicy(allow_out=(PUBLIC, PRIVATE)))
        snapshot = await sandbox.snapshot()
        [made] = await runtime.backend.snapshots.fork(sandbox.id, ForkOptions())
        assert isinstance(made, SandboxInfo)
        async with await runtime.sandboxes.attach(made.id) as twin:
            assert await heard(twin, PUBLIC, OTHER, PRIVATE) == {PUBLIC, PRIVATE}
        async with await runtime.snapshots.restore(snapshot.id) as restored:
            assert await heard(restored, PUBLIC, OTHER, PRIVATE) == {PUBLIC, PRIVATE}


async def test_the_next_server_keeps_the_policy_that_is_recorded(tmp_path: Path) -> None:
    async with Runtime.open(backend_at(tmp_path)) as runtime:
        await runtime.templates.prepare(TemplateSpec.host(id=TemplateId("base")))
        first = await runtime.sandboxes.create(spec(internet=True))
        second = await runtime.sandboxes.create(spec(internet=True, peers=(str(first.id),)))
        await first.update_network(NetworkPolicy(allow_out=(PUBLIC,), peers=(str(second.id),)))
        address = await echoing(second)
        assert await heard(first, PUBLIC, OTHER, address) == {PUBLIC, address}
        before = (await first.network()).use
    async with Runtime.open(backend_at(tmp_path), kill_all=True) as runtime:
        first, second = [await runtime.sandboxes.attach(one.id) for one in (first, second)]
        assert await heard(first, PUBLIC, OTHER, address) == {PUBLIC, address}
        after = (await first.network()).use
        assert before is not None
        assert after is not None
        assert after.packets_out > before.packets_out > 0
        await second.delete(force=True)
        assert await heard(first, PUBLIC, address) == {PUBLIC}
        await first.update_network(NetworkPolicy())
        assert await heard(first, PUBLIC) == set()
