"""A machine by the driver's own parts, started by the test itself: the launcher starts only this host's type."""

from __future__ import annotations

import asyncio
import fcntl
import os
import secrets
import signal
import socket
import struct
import threading
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from firkin.drivers.qemu import machines
from firkin.drivers.qemu.captures import Capture
from firkin.drivers.qemu.files import listen
from firkin.drivers.qemu.kits import Kit
from firkin.drivers.qemu.machines import Shape, command_line
from firkin.drivers.qemu.memory import empty_memory, load_memory
from firkin.drivers.qemu.qmp import Monitor
from firkin.drivers.qemu.stores import STATE, Fit, Store, read_store
from firkin.drivers.qemu.trunk import Trunk
from firkin.host import syscalls
from firkin.host.netlink import Netlink
from firkin.testing.conversation import Conversation

_TUNSETIFF, _TUNSETVNETHDRSZ = 0x400454CA, 0x400454D8
_TAP = 0x0002 | 0x1000 | 0x4000  # IFF_TAP, IFF_NO_PI, IFF_VNET_HDR
_VNET_HEADER = 12
_HIGH = 100
ANSWERS_WITHIN_S = 60.0
GUEST, OUTSIDE = "10.99.0.2", ("10.99.0.1", 8000)


@dataclass(frozen=True, slots=True)
class LoneMachine:
    """`outside` listens at the other end of its wire."""

    pid: int
    sockets: Path
    outside: socket.socket

    async def trunk(self, *, within_s: float) -> Trunk:
        return await Trunk.open(str(self.sockets / "trunk"), str(self.sockets / "reset"), within_s=within_s)

    async def monitor(self) -> Monitor:
        return await Monitor.connect(str(self.sockets / "control"), within_s=20)

    def complaints(self) -> str:
        return (self.sockets / "stderr").read_text(errors="replace")[-2000:]


@asynccontextmanager
async def running(
    sockets: Path, kit: Kit, shape: Shape, root: Path, disk: Path, store: Store | None = None
) -> AsyncIterator[LoneMachine]:
    """A new machine, or one that is woken from `store` and stands still."""
    sockets.mkdir()
    tap, outside = await asyncio.to_thread(_wire)
    size = shape.memory_mib << 20
    opened = {
        machines.FD_TRUNK: listen(str(sockets / "trunk")),
        machines.FD_RESET: listen(str(sockets / "reset")),
        machines.FD_CONTROL: listen(str(sockets / "control")),
        machines.FD_ROOT: os.open(root, os.O_RDONLY),
        machines.FD_DISK: os.open(disk, os.O_RDWR),
        machines.FD_KERNEL: os.open(kit.kernel, os.O_RDONLY),
        machines.FD_INITRAMFS: os.open(kit.initramfs, os.O_RDONLY),
        machines.FD_TAP: tap,
        2: os.open(sockets / "stderr", os.O_WRONLY | os.O_CREAT, 0o600),
    }
    if store is None:
        opened[machines.FD_MEMORY] = empty_memory(size)
    else:
        stored = os.open(store.memory, os.O_RDONLY)
        opened[machines.FD_MEMORY] = load_memory(stored, size)
        os.close(stored)
        opened[machines.FD_STATE] = os.open(store.folder / STATE, os.O_RDONLY)
    pid = _spawned(kit.program, command_line(shape, start=kit.start, name="lone", waking=store is not None), opened)
    try:
        yield LoneMachine(pid, sockets, outside)
    finally:
        outside.close()
        os.kill(pid, signal.SIGKILL)
        await asyncio.to_thread(os.waitpid, pid, 0)


async def said(trunk: Trunk, *argv: str) -> str:
    async with await Conversation.open(await trunk.dial()) as talk:
        answer = await talk.run(*argv)
    assert answer.result == {"exit": 0}, (answer.result, answer.fault, bytes(answer.stderr))
    return bytes(answer.stdout).decode()


async def settled(trunk: Trunk, name: str) -> str:
    answer = await trunk.ask(
        "settle",
        within_s=ANSWERS_WITHIN_S,
        epoch_ns=time.time_ns(),
        seed=secrets.token_hex(64),
        hostname=name,
        machine_id=uuid.uuid4().hex,
        boot_id=str(uuid.uuid4()),
        restored=False,
        hardened=False,
        pids=1024,
        address=GUEST,
        netmask="255.255.255.252",
        gateway=OUTSIDE[0],
    )
    return str(answer["kernel"])


async def heard(machine: LoneMachine, trunk: Trunk, python: str) -> str:
    """What the guest says over its network to who listens outside."""
    code = f"import _socket as s; c = s.socket(); c.connect({OUTSIDE!r}); c.send(b'from inside')"
    await said(trunk, python, "-c", code)
    connection, _ = await asyncio.to_thread(machine.outside.accept)
    with connection:
        return connection.recv(100).decode()


async def captured(machine: LoneMachine, trunk: Trunk, monitor: Monitor, fit: Fit, disk: Path, into: Path) -> Store:
    into.mkdir()
    capture = Capture(machine.pid, fit, disk, into)
    await trunk.ask("flush", within_s=ANSWERS_WITHIN_S)
    await capture.prepare(1 << 40)
    await monitor.ask("stop")
    await capture.write(monitor)
    await capture.finish()
    return read_store(into)


async def wake(monitor: Monitor) -> None:
    until = time.monotonic() + ANSWERS_WITHIN_S
    while (await monitor.ask("query-status"))["status"] == "inmigrate":
        assert time.monotonic() < until
        await asyncio.sleep(0.01)
    await monitor.ask("cont")


def _spawned(program: str, argv: list[str], places: dict[int, int]) -> int:
    """Each descriptor at its place there. First all go where no place is."""
    moved = {place: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _HIGH) for place, fd in places.items()}
    try:
        actions = [(os.POSIX_SPAWN_DUP2, fd, place) for place, fd in moved.items()]
        return os.posix_spawn(program, argv, {"PATH": "/usr/bin:/bin"}, file_actions=actions)
    finally:
        for fd in (*places.values(), *moved.values()):
            os.close(fd)


def _wire() -> tuple[int, socket.socket]:
    """A tap, and a listener at `OUTSIDE`, in a network namespace that lives as long as they: the thread ends."""
    made: list[tuple[int, socket.socket]] = []

    def make() -> None:
        syscalls.unshare(syscalls.CLONE_NEWNET)
        tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(tap, _TUNSETIFF, struct.pack("16sH22x", b"tap0", _TAP))
        fcntl.ioctl(tap, _TUNSETVNETHDRSZ, struct.pack("i", _VNET_HEADER))
        inside = Netlink()
        inside.add_address("tap0", OUTSIDE[0], 30)
        inside.set_up("tap0")
        inside.close()
        listener = socket.create_server(OUTSIDE)
        listener.settimeout(ANSWERS_WITHIN_S)
        made.append((tap, listener))

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    return made[0]
