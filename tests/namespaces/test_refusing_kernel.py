"""What is reached when the kernel takes no more orders or has no more room: nothing, or what was, never more."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from firkin import Runtime
from firkin.host import wires
from firkin.host.firewall import FLOWS, Firewall, FirewallUnavailable
from firkin.law.errors import BackendFailure
from firkin.law.network import EVERYWHERE, NetworkPolicy
from tests.namespaces.conftest import backend_at
from tests.namespaces.test_policy import OTHER, PRIVATE, PUBLIC, address_of, connections, heard, python, spec
from tests.namespaces.worlds import world

pytestmark = pytest.mark.asyncio(loop_scope="module")

MANY = """
import socket
probe = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
probe.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
for number in range(6000):
    try: probe.sendto(b"x", ("9.9.10.1", 10000 + number))
    except OSError: pass
"""


@pytest.fixture(scope="module", autouse=True)
def outside() -> Iterator[str]:
    with world() as name:
        yield name


async def test_connections_that_cannot_be_cut_leave_nothing_to_reach(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> NoReturn:
        raise OSError(errno.ENOBUFS, "No buffer space available")

    async with await runtime.sandboxes.create(spec(internet=True)) as sandbox:
        assert await heard(sandbox, PUBLIC, OTHER) == {PUBLIC, OTHER}
        with monkeypatch.context() as broken:
            broken.setattr(wires, "cut_connections", refuse)
            with pytest.raises(BackendFailure, match="No buffer space available"):
                await sandbox.update_network(NetworkPolicy(allow_out=(PUBLIC,)))
        assert await heard(sandbox, PUBLIC, OTHER, PRIVATE) == set()
        await sandbox.update_network(NetworkPolicy(allow_out=(PUBLIC,)))
        assert await heard(sandbox, PUBLIC, OTHER, PRIVATE) == {PUBLIC}


async def test_a_gateway_that_gets_no_doors_is_told_and_nothing_is_made(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> NoReturn:
        raise FirewallUnavailable("nft refused: no room")

    wanted = spec(deny_out=(EVERYWHERE,), allow_out=("allowed.test",), dns_servers=("9.9.9.53",))
    with monkeypatch.context() as broken:
        broken.setattr(Firewall, "open_doors", refuse)
        with pytest.raises(BackendFailure, match="nft refused: no room"):
            await runtime.sandboxes.create(wanted)
        async with await runtime.sandboxes.create(spec(internet=True)) as sandbox:
            with pytest.raises(BackendFailure, match="nft refused: no room"):
                await sandbox.update_network(wanted.network)
            assert await heard(sandbox, PUBLIC, OTHER, PRIVATE) == {PUBLIC, OTHER}, "the old policy stays"
    async with await runtime.sandboxes.create(wanted) as sandbox:
        assert await heard(sandbox, PUBLIC, OTHER, PRIVATE) == set()


async def test_one_that_fills_its_share_of_connections_gets_no_more_and_harms_nobody(runtime: Runtime) -> None:
    async with (
        await runtime.sandboxes.create(spec(internet=True)) as greedy,
        await runtime.sandboxes.create(spec(internet=True)) as other,
    ):
        address = await address_of(greedy)
        await greedy.exec(python(MANY))
        held = sum(f"src={address} " in row.split("dst=")[0] for row in table())
        assert FLOWS - 200 <= held <= FLOWS + 1
        assert await heard(greedy, PUBLIC, OTHER, PRIVATE) == set()
        assert await heard(other, PUBLIC, OTHER, PRIVATE) == {PUBLIC, OTHER}
    await all_forgotten(address)


async def all_forgotten(address: str) -> None:
    """Behind the delete, and before the next tenant."""
    async with asyncio.timeout(10):
        while connections(address):  # noqa: ASYNC110 — the kernel's table
            await asyncio.sleep(0.05)


def table() -> list[str]:
    return Path("/proc/net/nf_conntrack").read_text().splitlines()


async def test_a_server_without_nft_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> NoReturn:
        raise FirewallUnavailable("nft is missing; install it: apt-get install nftables")

    with monkeypatch.context() as broken:
        broken.setattr(Firewall, "_execute", refuse)
        with pytest.raises(BackendFailure, match="nft is missing; install it"):
            async with Runtime.open(backend_at(tmp_path)):
                await asyncio.sleep(0)
