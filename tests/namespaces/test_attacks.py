"""Less obvious attacks: host-wide tables, 32-bit comparisons, forged packets, facts about the host."""

from __future__ import annotations

import ctypes
import os
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from firkin import Runtime
from firkin.law.resources import MIB, SandboxResources
from firkin.law.sandboxes import SandboxSpec
from tests.namespaces.conftest import Shell

pytestmark = pytest.mark.asyncio(loop_scope="module")

PYTHON = "/usr/bin/python3"
CALL = f"{PYTHON} -c 'import ctypes, sys; l = ctypes.CDLL(None, use_errno=True); l.syscall.restype = ctypes.c_long; "
SMALL = SandboxResources(vcpus=1, memory_bytes=64 * MIB, disk_bytes=64 * MIB, pids=60)


def queued_signals() -> int:
    return int(re.search(r"SigQ:\s*(\d+)", Path("/proc/self/status").read_text())[1])  # type: ignore[index]


async def test_no_block_device_tells_of_the_host_or_of_neighbours(shell: Shell) -> None:
    output = await shell("cat /sys/devices/virtual/block/loop*/loop/backing_file", user="root")
    assert output.stdout == b""


async def test_signals_queued_inside_are_not_counted_against_root_of_the_host(shell: Shell) -> None:
    queue = (
        "import ctypes, os, signal\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGRTMIN]); l = ctypes.CDLL(None)\n"
        "for _ in range(2000): l.sigqueue(os.getpid(), int(signal.SIGRTMIN), None)\n"
        "print(flush=True); input()"
    )
    before = queued_signals()
    await shell(f"(sleep 2 | {PYTHON} -c '{queue}') >/dev/null 2>&1 & sleep 0.5")
    assert queued_signals() < before + 1000


@pytest.mark.parametrize(
    "attack",
    ["302, 0x100000001, 7, 0, 0", "203, 0x100000001, 8, 0", "141, 0, 0x100000001, 1", "144, 1, 0, 0", "251, 1, 1, 0"],
    ids=["prlimit64", "sched_setaffinity", "setpriority", "sched_setscheduler", "ioprio_set"],
)
async def test_the_agent_s_scheduling_and_limits_are_out_of_reach(shell: Shell, attack: str) -> None:
    numbers = ", ".join(f"ctypes.c_long({word})" for word in attack.split(", "))
    output = await shell(f"{CALL}print(l.syscall({numbers}), ctypes.get_errno())'", user="root")
    assert output.stdout == b"-1 1\n"


async def test_packet_sockets_are_refused(shell: Shell) -> None:
    output = await shell(f"{PYTHON} -c 'import socket; socket.socket(17, 3, 0)'", user="root")
    assert b"PermissionError" in output.stderr


async def test_pressure_triggers_cannot_be_made(shell: Shell) -> None:
    output = await shell("echo 'some 150000 2000000' > /proc/pressure/cpu")
    assert not output.ok


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def public_link() -> Iterator[None]:
    """A link of the host's to a public address, where nobody answers."""
    name = f"atk{os.getpid() % 100000}"
    ip("link", "add", name, "type", "veth", "peer", "name", f"{name}p")
    ip("addr", "add", "9.9.6.1/24", "dev", name)
    ip("link", "set", name, "up")
    ip("link", "set", f"{name}p", "up")
    ip("neigh", "add", "9.9.6.2", "lladdr", "02:00:00:00:00:01", "dev", name)
    yield
    ip("link", "del", name)


async def test_a_spoofed_answer_does_not_reach_a_socket_of_the_host(shell: Shell, public_link: None) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        asker.connect(("9.9.6.2", 5353))
        asker.send(b"question")
        asker.settimeout(1)
        spoof = (
            "import socket, struct\n"
            f'u = struct.pack("!HHHH", 5353, {asker.getsockname()[1]}, 12, 0) + b"evil"\n'
            'p = struct.pack("!BBHHHBBH4s4s", 69, 0, 32, 1, 0, 64, 17, 0, socket.inet_aton("9.9.6.2"), '
            'socket.inet_aton("9.9.6.1")) + u\n'
            'socket.socket(2, 3, 255).sendto(p, ("9.9.6.1", 0))'
        )
        assert (await shell(f"{PYTHON} -c '{spoof}'", user="root")).ok
        with pytest.raises(TimeoutError):
            asker.recv(100)


async def test_a_sparse_file_is_sparse_on_the_host_too(runtime: Runtime, tmp_path: Path) -> None:
    async with await runtime.sandboxes.create(SandboxSpec.from_template("base", resources=SMALL)) as sandbox:
        await sandbox.exec("truncate -s 100M /home/user/sparse")
        await sandbox.fs.copy_out("/home/user/sparse", tmp_path / "out")
    assert (tmp_path / "out").stat().st_blocks * 512 < 4 * MIB


async def test_asynchronous_contexts_of_the_host_are_not_used_up(shell: Shell) -> None:
    take = "c = ctypes.c_ulong(0); print(l.syscall(ctypes.c_long(206), ctypes.c_long(1000), ctypes.byref(c)))"
    before = int(Path("/proc/sys/fs/aio-nr").read_text())
    await shell(f"({CALL}{take}; import time; time.sleep(2)') >/dev/null 2>&1 & sleep 0.5")
    assert int(Path("/proc/sys/fs/aio-nr").read_text()) - before < 100


async def test_the_host_still_has_inotify_instances_when_a_sandbox_takes_its_own(shell: Shell) -> None:
    library = ctypes.CDLL(None, use_errno=True)

    def left() -> int:
        taken = []
        while len(taken) < 4096 and (fd := library.inotify_init1(os.O_CLOEXEC)) >= 0:
            taken.append(fd)
        for fd in taken:
            os.close(fd)
        return len(taken)

    before = left()
    take = "print([l.inotify_init1(0) for _ in range(16)]); import time; time.sleep(2)"
    await shell(f"({CALL}{take}') >/dev/null 2>&1 & sleep 0.5")
    assert left() > before - 8
