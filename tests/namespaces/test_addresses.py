"""Addresses that must stay out of reach, in every spelling that programs take; each is shown to answer others."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import closing

import pytest
import pytest_asyncio

from firkin import Runtime, Sandbox
from firkin.law.network import NetworkPolicy
from firkin.law.sandboxes import SandboxSpec
from tests.namespaces.test_policy import address_of, python
from tests.namespaces.worlds import PORT, ip, world

pytestmark = pytest.mark.asyncio(loop_scope="module")

PUBLIC, METADATA, LAN, OTHER_LAN = "9.9.9.9", "169.254.169.254", "10.77.0.5", "192.168.77.9"
ULA, HOST_ULA, HOST_END = "fd77:1::2", "fd77:1::1", "9.8.7.1"
HAS_IPV6 = socket.has_ipv6 and not subprocess.run(["ip", "-6", "route"], capture_output=True, check=False).returncode

# One line for each target of `FAMILY ADDRESS PORT` that gives back what it is sent.
PROBE = """
import socket, sys, threading
def probe(family, address, port):
    try:
        with socket.socket(socket.AF_INET6 if family == '6' else socket.AF_INET) as s:
            s.settimeout(1.5)
            place, _, scope = address.partition('%')
            if family == '6':
                s.connect((place, int(port), 0, socket.if_nametoindex(scope) if scope else 0))
            else:
                s.connect((socket.inet_ntoa(socket.inet_aton(place)), int(port)))
            s.sendall(b'x')
            if s.recv(1) == b'x': sys.stdout.write(f'{family} {address} {port}\\n')
    except OSError:
        pass
threads = [threading.Thread(target=probe, args=line.split()) for line in sys.argv[1:]]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""
ECHO = """
import socketserver, sys
class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        while data := self.request.recv(99): self.request.sendall(data)
class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address, daemon_threads = True, True
    address_family = socketserver.socket.AF_INET6 if ':' in sys.argv[1] else socketserver.socket.AF_INET
with Server((sys.argv[1], int(sys.argv[2])), Echo) as server:
    print('ready', flush=True)
    server.serve_forever()
"""


def spellings(address: str) -> list[str]:
    """Of one IPv4 address, as `inet_aton` and URL parsers take them."""
    parts = [int(part) for part in address.split(".")]
    number = int.from_bytes(bytes(parts), "big")
    octal, mixed = ".".join(f"0{part:o}" for part in parts), ".".join(f"0x{part:x}" for part in parts)
    short = f"{parts[0]}.{parts[1]}.{parts[2] * 256 + parts[3]}"
    shorter = f"0x{parts[0]:x}.{number & 0xFFFFFF}"
    return [address, str(number), hex(number), f"0{number:o}", octal, mixed, short, shorter]


def forms(address: str, port: int) -> list[str]:
    """Also as IPv6 sockets spell IPv4 addresses."""
    packed = socket.inet_aton(address).hex()
    mapped = [f"::ffff:{address}", f"::ffff:{packed[:4]}:{packed[4:]}", f"0:0:0:0:0:ffff:{address}"]
    return [*(f"4 {one} {port}" for one in spellings(address)), *(f"6 {one} {port}" for one in mapped)]


def heard_here(targets: list[str]) -> set[str]:
    """Those that answer the host itself."""
    done = subprocess.run([sys.executable, "-c", PROBE, *targets], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines())


def said_here(text: str) -> bytes:
    return subprocess.run(["/bin/bash", "-c", text], capture_output=True, check=False).stdout


async def heard(sandbox: Sandbox, targets: list[str], *, user: str | None = None) -> set[str]:
    return set((await sandbox.exec(python(PROBE, *targets, user=user))).stdout.decode().splitlines())


@pytest.fixture(scope="module", autouse=True)
def outside() -> Iterator[str]:
    with world() as name:
        if HAS_IPV6:
            ip("-6", "addr", "add", f"{HOST_ULA}/64", "dev", "tpol0", "nodad")
            ip("-n", name, "-6", "addr", "add", f"{ULA}/64", "dev", "tpol1", "nodad")
        with subprocess.Popen(
            ["ip", "netns", "exec", name, sys.executable, "-c", ECHO, "::" if HAS_IPV6 else "127.0.0.1", "8006"],
            stdout=subprocess.PIPE,
        ) as echo:
            assert echo.stdout is not None
            assert echo.stdout.readline() == b"ready\n"
            yield name
            echo.kill()


@pytest.fixture(scope="module")
def host_port() -> Iterator[int]:
    """Where the host echoes, on all of its addresses."""
    family = socket.AF_INET6 if HAS_IPV6 else socket.AF_INET
    listener = socket.create_server(("", 0), family=family, dualstack_ipv6=HAS_IPV6, backlog=64)

    def serve() -> None:
        while True:
            try:
                accepted, _ = listener.accept()
            except OSError:
                return
            with closing(accepted):
                accepted.settimeout(2)
                try:
                    accepted.sendall(accepted.recv(9))
                except OSError:
                    continue

    thread = threading.Thread(target=serve)
    thread.start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(5)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def other(runtime: Runtime) -> AsyncIterator[Sandbox]:
    """Another sandbox, where something echoes."""
    async with await runtime.sandboxes.create(spec(NetworkPolicy(internet=True))) as made:
        stream = await made.process.stream(python(ECHO, "0.0.0.0", str(PORT)))
        async for event in stream:
            if b"ready" in getattr(event, "data", b""):
                break
        await stream.aclose()
        yield made


def spec(policy: NetworkPolicy) -> SandboxSpec:
    return SandboxSpec.from_template("base", network=policy)


def host_addresses() -> list[str]:
    """The host's own, on whatever network it is."""
    listed = subprocess.run(["ip", "-4", "-o", "addr", "show"], capture_output=True, text=True, check=True).stdout
    found = [line.split()[3].partition("/")[0] for line in listed.splitlines() if line.split()[1] != "lo"]
    return [address for address in found if not address.startswith("198.1")][:8]


def link_local_of(name: str) -> str:
    listed = subprocess.run(
        ["ip", "-n", name, "-6", "-o", "addr", "show", "dev", "tpol1", "scope", "link"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    return listed.split()[3].partition("/")[0]


POLICIES = {
    "internet": (NetworkPolicy(internet=True), {PUBLIC}),
    "another private range": (NetworkPolicy(internet=True, allow_out=("192.168.77.0/24",)), {PUBLIC, OTHER_LAN}),
    "wide words": (NetworkPolicy(internet=True, allow_out=("0.0.0.0/0", "8.0.0.0/5", "168.0.0.0/6")), {PUBLIC}),
    "one address": (NetworkPolicy(allow_out=(PUBLIC,)), {PUBLIC}),
    "by a gateway": (NetworkPolicy(internet=True, dns_servers=("9.9.9.53",)), {PUBLIC}),
    "by a gateway, named": (
        NetworkPolicy(
            internet=True,
            allow_out=("192.168.77.0/24", "198.18.0.0/15", "127.0.0.0/8", "0.0.0.0/8", "9.8.7.0/24"),
            dns_servers=("9.9.9.53",),
        ),
        {PUBLIC, OTHER_LAN},
    ),
}


@pytest.mark.parametrize("name", POLICIES)
async def test_no_spelling_of_a_private_address_is_reached(runtime: Runtime, name: str) -> None:
    policy, allowed = POLICIES[name]
    targets = [target for address in (LAN, OTHER_LAN, METADATA) for target in forms(address, PORT)]
    assert heard_here(targets) == set(targets), "all of them answer, and are understood in all spellings"
    async with await runtime.sandboxes.create(spec(policy)) as sandbox:
        reachable = {target for address in allowed for target in forms(address, PORT)}
        for user in (None, "root"):
            assert await heard(sandbox, [*targets, *sorted(reachable)], user=user) == reachable


@pytest.mark.parametrize("name", POLICIES)
async def test_no_name_of_the_host_is_reached(runtime: Runtime, name: str, host_port: int) -> None:
    policy, _ = POLICIES[name]
    async with await runtime.sandboxes.create(spec(policy)) as sandbox:
        own = await address_of(sandbox)
        own_end = f"{own.rpartition('.')[0]}.{int(own.rpartition('.')[2]) - 1}"
        places = ["127.0.0.1", "127.0.0.2", "0.0.0.0", HOST_END, own_end, *host_addresses()]
        targets = [target for address in dict.fromkeys(places) for target in forms(address, host_port)]
        if HAS_IPV6:
            targets += [f"6 {address} {host_port}" for address in ("::1", "::", HOST_ULA)]
        here = heard_here(targets)
        assert {target for target in targets if own_end not in target and target.startswith("4 ")} <= here
        assert await heard(sandbox, [*targets, f"4 {PUBLIC} {PORT}"]) == {f"4 {PUBLIC} {PORT}"}


@pytest.mark.skipif(not HAS_IPV6, reason="this kernel has no IPv6")
async def test_no_ipv6_is_reached(runtime: Runtime, outside: str) -> None:
    local = link_local_of(outside)
    assert heard_here([f"6 {ULA} 8006", f"6 {local}%tpol0 8006"]) == {f"6 {ULA} 8006", f"6 {local}%tpol0 8006"}
    async with await runtime.sandboxes.create(spec(NetworkPolicy(internet=True))) as sandbox:
        targets = [f"6 {ULA} 8006", f"6 {local} 8006", f"6 {local}%eth0 8006", f"6 {local}%lo 8006"]
        for user in (None, "root"):
            assert await heard(sandbox, [*targets, f"6 ::ffff:{PUBLIC} {PORT}"], user=user) == {
                f"6 ::ffff:{PUBLIC} {PORT}"
            }


@pytest.mark.parametrize("name", POLICIES)
async def test_no_spelling_of_another_sandbox_is_reached(runtime: Runtime, other: Sandbox, name: str) -> None:
    targets = forms(await address_of(other), PORT)
    async with await runtime.sandboxes.create(spec(POLICIES[name][0])) as sandbox:
        assert await heard(sandbox, [*targets, f"4 {PUBLIC} {PORT}"]) == {f"4 {PUBLIC} {PORT}"}
        await other.update_network(NetworkPolicy(internet=True, peers=(str(sandbox.id),)))
        await sandbox.update_network(NetworkPolicy(internet=True, peers=(str(other.id),)))
        assert await heard(sandbox, targets) == set(targets), "as peers they do: it does answer"
        await other.update_network(NetworkPolicy(internet=True))


async def test_programs_take_these_spellings_and_reach_nothing(runtime: Runtime, host_port: int) -> None:
    """As URLs: what `curl` makes of them."""
    hosts = ["2130706433", "0177.0.0.1", "0x7f.1", "0x7f000001", "0", "127.1", "[::ffff:127.0.0.1]", "localhost"]
    ask = f"for h in {' '.join(hosts)}; do printf x | curl -s -m 2 telnet://$h:{host_port}; done"
    assert said_here(ask).count(b"x") >= 6
    async with await runtime.sandboxes.create(spec(NetworkPolicy(internet=True))) as sandbox:
        assert (await sandbox.exec(ask)).stdout == b""
        shown = await sandbox.exec(f"printf x | curl -s -m 2 telnet://151587081:{PORT}")
        assert shown.stdout == b"x"
