"""What a microVM's root can have the host note, who sends whatever frames he likes: sent here as QEMU would."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import closing

import pytest
import pytest_asyncio

from firkin.drivers.ground.helper_process import HelperProcess
from firkin.drivers.ground.numbers import SlotNumbers
from firkin.drivers.qemu.spawner import _tap
from firkin.host.disks import remove_loop_device
from firkin.host.firewall import Firewall
from firkin.host.nfnetlink import Nfnetlink
from firkin.host.refusals import refused_packets
from firkin.host.wires import forget_tenant
from tests.namespaces.test_host_tables import TRIES, neighbours, waiting_fragments

DEVICE = "/dev/net/tun"

pytestmark = [
    pytest.mark.host,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(os.geteuid() != 0 or not os.path.exists(DEVICE), reason="needs root and taps"),
]

NUMBERS = SlotNumbers(4030)
_VIRTIO = bytes(12)
_GUEST, _ALL = bytes.fromhex("020000000001"), b"\xff" * 6
_ARP, _IPV4, _IPV6 = 0x0806, 0x0800, 0x86DD


@pytest.fixture(scope="module")
def kernel() -> Iterator[Nfnetlink]:
    firewall = Firewall("test")
    firewall.install()
    with closing(Nfnetlink()) as kernel:
        yield kernel
        forget_tenant(kernel, NUMBERS.interface, NUMBERS.guest_address)
    firewall.remove_if_last()
    firewall.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tap(kernel: Nfnetlink) -> AsyncIterator[int]:
    """Of a slot as sandboxes have it."""
    maker = HelperProcess("firkin.drivers.ground.slot_maker")
    await maker.start()
    try:
        await maker.send(f'{{"slot": {NUMBERS.slot}}}'.encode(), [])
        answer, fds = await maker.receive()
    finally:
        await maker.aclose()
    assert b"error" not in answer, answer
    own = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    tap = await asyncio.to_thread(_tap, fds[1], NUMBERS, own, device=DEVICE)
    yield tap
    for fd in (tap, own, *fds):
        os.close(fd)
    remove_loop_device(NUMBERS.loop)


def send(tap: int, kind: int, body: bytes, to: bytes = _ALL) -> None:
    os.write(tap, _VIRTIO + to + _GUEST + struct.pack("!H", kind) + body)


def asks(tap: int, sender: str, target: str) -> None:
    addresses = _GUEST + socket.inet_aton(sender) + bytes(6) + socket.inet_aton(target)
    send(tap, _ARP, struct.pack("!HHBBH", 1, _IPV4, 6, 4, 1) + addresses)


async def answer(tap: int) -> bytes:
    """The hardware address that an ARP answer names; other frames are passed over."""
    async with asyncio.timeout(5):
        while True:
            try:
                frame = os.read(tap, 65536)[len(_VIRTIO) :]
            except BlockingIOError:
                await asyncio.sleep(0.01)
                continue
            if frame[12:14] == struct.pack("!H", _ARP) and frame[20:22] == b"\0\2":
                return frame[22:28]


async def test_made_up_neighbours_take_no_place_in_the_machine_s_table(tap: int) -> None:
    before = neighbours()
    for number in range(TRIES):
        made_up = f"11.0.{number // 250}.{number % 250 + 1}"
        for target in (NUMBERS.host_address, made_up, "9.9.9.9"):
            asks(tap, made_up, target)
        send(tap, _IPV6, _router(number), b"\x33\x33\0\0\0\1")
    asks(tap, NUMBERS.guest_address, NUMBERS.host_address)
    await answer(tap)  # all before it has been looked at, too
    assert neighbours() - before < TRIES / 4


def _router(number: int) -> bytes:
    """Of IPv6: fe80::1:N says that it is a router, and of what hardware address."""
    source, group = (socket.inet_pton(socket.AF_INET6, text) for text in (f"fe80::1:{number:x}", "ff02::1"))
    body = struct.pack("!BBHIII", 134, 0, 0, 0, 0, 0) + b"\1\1" + _GUEST
    pseudo = source + group + struct.pack("!II", len(body), 58) + body
    total = sum(struct.unpack(f"!{len(pseudo) // 2}H", pseudo))
    total = (total & 0xFFFF) + (total >> 16)
    total = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    body = body[:2] + struct.pack("!H", total) + body[4:]
    return struct.pack("!IHBB", 6 << 28, len(body), 58, 255) + source + group + body


async def test_parts_of_packets_do_not_wait_on_the_host_for_others(tap: int, kernel: Nfnetlink) -> None:
    asks(tap, NUMBERS.guest_address, NUMBERS.host_address)
    gateway = await answer(tap)
    for number in range(100):
        send(tap, _IPV4, _first_part(number), gateway)
    async with asyncio.timeout(5):
        while refused_packets(kernel, NUMBERS.guest_address) < 100:  # noqa: ASYNC110 — the kernel's count
            await asyncio.sleep(0.01)
    assert waiting_fragments() == 0


def _first_part(number: int) -> bytes:
    head = struct.pack("!BBHHHBBH", 0x45, 0, 1420, number + 1, 0x2000, 64, 17, 0)
    head += socket.inet_aton(NUMBERS.guest_address) + socket.inet_aton("9.9.9.9")
    total = sum(struct.unpack("!10H", head))
    total = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    return head[:10] + struct.pack("!H", total) + head[12:] + b"A" * 1400
