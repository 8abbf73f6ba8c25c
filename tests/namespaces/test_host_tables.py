"""Tables that have one size for the whole machine: what a sandbox without internet can put into them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from firkin import Runtime, Sandbox
from firkin.law.processes import Argv, Command
from firkin.law.sandboxes import SandboxSpec
from tests.namespaces.test_network import public_host, reaches, spec

__all__ = ["public_host"]

pytestmark = pytest.mark.asyncio(loop_scope="module")

PYTHON = "/usr/bin/python3"
_STATISTICS = Path("/proc/1/net/stat")
TRIES = 300  # of a neighbour table's 1,024

# Datagrams to addresses that are said to be on the wire, whatever the routes say.
NEIGHBOURS = """
import socket
tries, ways = range(%d), {}
def attempt(name, make, places):
    for place in places:
        try: make().sendto(b"x", place)
        except OSError as error: ways.setdefault(name, set()).add(error.errno)
def on_the_wire(device=b"eth0"):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_DONTROUTE, 1)
    return s
def six():
    return socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
attempt("on the wire", on_the_wire, [(f"11.0.{i // 250}.{i %% 250 + 1}", 9) for i in tries])
attempt("groups", on_the_wire, [(f"239.0.{i // 250}.{i %% 250 + 1}", 9) for i in tries])
for name in ("eth0", "lo"):
    scope = socket.if_nametoindex(name)
    attempt(f"link-local {name}", six, [(f"fe80::1:{i:x}", 9, 0, scope) for i in tries])
    attempt(f"IPv6 groups {name}", six, [(f"ff02::1:{i:x}", 9, 0, scope) for i in tries])
print(ways)
"""

# First parts of packets whose other parts never come.
FRAGMENTS = """
import socket, struct
own = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
own.connect(("9.9.9.9", 9))
source = socket.inet_aton(own.getsockname()[0])
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
for number in range(%d):
    head = struct.pack("!BBHHHBBH", 0x45, 0, 1420, number + 1, 0x2000, 64, 17, 0)
    raw.sendto(head + source + socket.inet_aton("9.9.9.9") + b"A" * 1400, ("9.9.9.9", 0))
print("sent")
"""

LOOPBACK = """
import socket
for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET, "127.8.9.1"), (socket.AF_INET6, "::1")):
    with socket.socket(family, socket.SOCK_DGRAM) as ear, socket.socket(family, socket.SOCK_DGRAM) as mouth:
        ear.bind((address, 0))
        ear.settimeout(2)
        mouth.sendto(b"x" * 60000, ear.getsockname())
        assert len(ear.recv(65536)) == 60000
    with socket.create_server((address, 0), family=family) as server:
        with socket.create_connection(server.getsockname()[:2], 2): pass
print("heard")
"""


async def python(sandbox: Sandbox, program: str, user: str | None = None) -> bytes:
    done = await sandbox.exec(Command(mode=Argv(PYTHON, ("-c", program)), user=user, timeout_s=30))
    assert not done.stderr, done.stderr
    return done.stdout


def neighbours() -> int:
    """Of the whole machine, in all of its network namespaces: that is what has one bound."""
    tables = [table for name in ("arp_cache", "ndisc_cache") if (table := _STATISTICS / name).exists()]
    if not tables:
        pytest.skip("only the machine's first network tells how many neighbours there are in all")
    return sum(int(table.read_text().splitlines()[1].split()[0], 16) for table in tables)


def waiting_fragments() -> int:
    return sum(map(int, re.findall(r"^FRAG6?: inuse (\d+)", _read("sockstat") + _read("sockstat6"), re.MULTILINE)))


def _read(name: str) -> str:
    path = Path(f"/proc/net/{name}")
    return path.read_text() if path.exists() else ""


@pytest.mark.parametrize("user", [None, "root"])
async def test_neighbours_that_nobody_has_take_no_place_in_the_machine_s_table(
    runtime: Runtime, user: str | None
) -> None:
    async with await runtime.sandboxes.create(spec(internet=False)) as sandbox:
        before = neighbours()
        await python(sandbox, NEIGHBOURS % TRIES, user)
        assert neighbours() - before < TRIES / 4


async def test_parts_of_packets_do_not_wait_on_the_host_for_others(runtime: Runtime) -> None:
    async with await runtime.sandboxes.create(spec(internet=False)) as sandbox:
        assert await python(sandbox, FRAGMENTS % 100, "root") == b"sent\n"
        assert waiting_fragments() == 0
        use = (await sandbox.network()).use
        assert use is not None
        assert use.packets_refused == 100


async def test_loopback_inside_is_as_it_was(runtime: Runtime) -> None:
    async with await runtime.sandboxes.create(SandboxSpec.from_template("base")) as sandbox:
        assert await python(sandbox, LOOPBACK) == b"heard\n"


async def test_a_sandbox_with_internet_still_finds_its_way(runtime: Runtime, public_host: str) -> None:
    async with await runtime.sandboxes.create(spec(internet=True)) as sandbox:
        assert await reaches(sandbox, public_host)
        await python(sandbox, NEIGHBOURS % 20, "root")
        assert await reaches(sandbox, public_host)
