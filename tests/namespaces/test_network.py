"""Who a sandbox can talk to. The "internet" is a network namespace that the test makes itself."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from firkin import Runtime, Sandbox
from firkin.drivers.ground.helper_process import HelperProcess
from firkin.drivers.ground.numbers import SlotNumbers
from firkin.host.disks import remove_loop_device
from firkin.host.firewall import ONLINE
from firkin.law.network import NetworkPolicy
from firkin.law.ports import Port
from firkin.law.processes import Argv, Command
from firkin.law.sandboxes import SandboxSpec

pytestmark = pytest.mark.asyncio(loop_scope="module")

PUBLIC = "9.9.9.9"
SERVE = "/usr/bin/python3 -m http.server 8000 --bind {host} --directory /etc/ssl"
FETCH = (
    "/usr/bin/python3 -c \"import socket; s = socket.create_connection(('{host}', {port}), 1.5); print('connected')\""
)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


_NAMED = "/run/netns"


def socket_answers(host: str) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.2)
        return probe.connect_ex((host, 8000)) == 0


@pytest.fixture(scope="module")
def public_host() -> Iterator[str]:
    """A host with a public address behind its own veth, where something listens on port 8000."""
    name = f"fktest{os.getpid()}"
    mounted = os.path.ismount(_NAMED)
    ip("netns", "add", name)
    ip("link", "add", "tpub0", "type", "veth", "peer", "name", "tpub1", "netns", name)
    ip("addr", "add", "9.9.9.1/24", "dev", "tpub0")
    ip("link", "set", "tpub0", "up")
    for words in (
        ("addr", "add", f"{PUBLIC}/24", "dev", "tpub1"),
        ("link", "set", "tpub1", "up"),
        ("link", "set", "lo", "up"),
    ):
        ip("-n", name, *words)
    with open("/proc/sys/net/ipv4/conf/tpub0/forwarding", "w") as file:
        file.write("1")
    server = subprocess.Popen(
        [
            "ip",
            "netns",
            "exec",
            name,
            sys.executable,
            "-m",
            "http.server",
            "8000",
            "--bind",
            PUBLIC,
            "--directory",
            "/usr",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 10
    while socket_answers(PUBLIC) is False and time.monotonic() < deadline:
        time.sleep(0.02)
    yield PUBLIC
    server.kill()
    server.wait()
    ip("netns", "del", name)
    if not mounted:  # the first use of a name makes a mount of it that stays
        subprocess.run(["umount", _NAMED], check=True)
    subprocess.run(["ip", "link", "del", "tpub0"], check=False, capture_output=True)


def spec(*, internet: bool) -> SandboxSpec:
    return SandboxSpec.from_template("base", network=NetworkPolicy(internet=internet))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def online(runtime: Runtime) -> AsyncIterator[Sandbox]:
    async with await runtime.sandboxes.create(spec(internet=True)) as sandbox:
        yield sandbox


async def reaches(sandbox: Sandbox, host: str, port: int = 8000) -> bool:
    return (await sandbox.exec(FETCH.format(host=host, port=port))).stdout == b"connected\n"


async def test_a_sandbox_with_internet_reaches_a_public_address(online: Sandbox, public_host: str) -> None:
    assert await reaches(online, public_host)


async def test_a_sandbox_without_internet_reaches_nothing(runtime: Runtime, public_host: str) -> None:
    async with await runtime.sandboxes.create(spec(internet=False)) as sandbox:
        assert not await reaches(sandbox, public_host)


async def test_the_next_tenant_of_a_slot_does_not_inherit_internet(runtime: Runtime, public_host: str) -> None:
    for _ in range(4):
        async with await runtime.sandboxes.create(spec(internet=True)) as first:
            assert await reaches(first, public_host)
        async with await runtime.sandboxes.create(spec(internet=False)) as second:
            assert not await reaches(second, public_host)


async def test_the_host_s_own_services_are_out_of_reach(online: Sandbox) -> None:
    with socket.socket() as listener:
        listener.bind(("0.0.0.0", 0))
        listener.listen()
        port = listener.getsockname()[1]
        gateway = (await online.exec("ip route 2>/dev/null | awk '/default/ {print $3}'")).stdout.decode().strip()
        addresses = ["9.9.9.1", gateway or "198.18.0.1", socket.gethostbyname("localhost")]
        for address in addresses:
            assert not await reaches(online, address, port)


@pytest.mark.parametrize("address", ["169.254.169.254", "10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1"])
async def test_private_and_metadata_addresses_are_dropped(online: Sandbox, address: str) -> None:
    assert not await reaches(online, address, 80)


async def test_sandboxes_cannot_reach_each_other(runtime: Runtime, online: Sandbox) -> None:
    async with await runtime.sandboxes.create(spec(internet=True)) as other:
        await other.process.start(SERVE.format(host="0.0.0.0"))
        await listening(other, 8000)
        address = (await other.exec("hostname -I 2>/dev/null || ip -4 -o addr show eth0")).stdout.split()[0].decode()
        assert not await reaches(online, address)


async def test_a_service_on_loopback_inside_is_reachable_from_the_host(online: Sandbox) -> None:
    await online.process.start(SERVE.format(host="127.0.0.1"))
    await listening(online, 8000)
    channel = await online.ports.connect(Port(8000))
    await channel.write(b"GET / HTTP/1.0\r\n\r\n")
    assert (await channel.read()).startswith(b"HTTP/1.0 200")
    await channel.aclose()


async def listening(sandbox: Sandbox, port: int) -> None:
    async with asyncio.timeout(10):
        while not any(binding.guest == port for binding in await sandbox.ports.list()):  # noqa: ASYNC110 — a guest's port
            await asyncio.sleep(0.05)


SPOOF = """
import socket, struct
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
addresses = socket.inet_aton("{source}") + socket.inet_aton("9.9.9.9")
head = struct.pack("!BBHHHBBH", 0x45, 0, 28, 1, 0, 64, 17, 0) + addresses
for _ in range(20):
    raw.sendto(head + struct.pack("!HHHH", 4000, 4001, 8, 0), ("9.9.9.9", 0))
print("sent")
"""


async def test_another_address_than_its_own_is_dropped(online: Sandbox, public_host: str) -> None:
    own = (await online.exec("hostname -I || ip -4 -o addr show eth0")).stdout.split()[0].decode()
    neighbour = own.rsplit(".", 1)[0] + "." + str((int(own.rsplit(".", 1)[1]) + 4) % 252)
    before = _packets("tpub0")
    for source in (neighbour, "9.9.9.200", "127.0.0.1"):
        sent = await online.exec(
            Command(mode=Argv("/usr/bin/python3", ("-c", SPOOF.format(source=source))), user="root")
        )
        assert sent.stdout == b"sent\n"
    assert _packets("tpub0") - before < 20


def _packets(interface: str) -> int:
    return int(Path(f"/sys/class/net/{interface}/statistics/tx_packets").read_text())


async def test_a_new_slot_forgets_what_a_killed_server_allowed() -> None:
    ip("link", "add", "fk4031", "type", "veth", "peer", "name", "fk4031b")
    ip("link", "set", "fk4031", "group", str(ONLINE))
    maker = HelperProcess("firkin.drivers.ground.slot_maker")
    await maker.start()
    await maker.send(b'{"slot": 4031}', [])
    _, fds = await maker.receive()
    assert Path("/sys/class/net/fk4031/netdev_group").read_text() == "0\n"
    for fd in fds:
        os.close(fd)
    await maker.aclose()
    remove_loop_device(SlotNumbers(4031).loop)
