"""A real agent in a process of its own, spoken to over a Unix socket."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import firkin
from firkin.channels import over_unix
from firkin.engine.guest_files import GuestFiles
from firkin.engine.guest_link import GuestLink
from firkin.engine.guest_ports import GuestPorts
from firkin.engine.guest_processes import GuestProcesses
from firkin.law.ids import SandboxId

SOURCES = str(Path(firkin.__file__).parent.parent)
SCRIPT = str(Path(__file__).parent / "agent_process.py")
SANDBOX = SandboxId("testbox")

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="switching users and pid namespaces need root")


class RunningAgent:
    """`pid` is the agent's on the host."""

    def __init__(self, folder: Path, nofile: int = 0) -> None:
        self.socket = str(folder / "agent.sock")
        self.imports = folder / "imports"
        command = [sys.executable, "-I", "-S", SCRIPT, SOURCES, self.socket, str(self.imports), str(nofile)]
        if os.geteuid() == 0:  # as PID 1 its end is the end of everything it started
            command = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", *command]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, env={"LC_ALL": "C"})
        self._wait()
        self.pid = self._child() or self._process.pid

    def _wait(self) -> None:
        deadline = time.monotonic() + 20
        while not os.path.exists(self.socket):
            assert self._process.poll() is None, "the agent did not start"
            assert time.monotonic() < deadline, "the agent took too long to start"
            time.sleep(0.005)

    def _child(self) -> int | None:
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return int(children[0]) if os.geteuid() == 0 and children else None

    def stop(self) -> None:
        with suppress(ProcessLookupError):  # itself: a change of user clears the death signal that --kill-child sets
            os.kill(self.pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait()

    async def link(self) -> GuestLink:
        deadline = time.monotonic() + 5
        while True:
            try:
                channel = await over_unix(self.socket, within_s=5)
                break
            except ConnectionRefusedError:  # bound, but not listening yet
                assert time.monotonic() < deadline
                await asyncio.sleep(0.005)
        return await GuestLink.open(channel, SANDBOX)


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[RunningAgent]:
    running = RunningAgent(tmp_path)
    yield running
    running.stop()
    assert not running.imports.exists(), f"imported after the start: {running.imports.read_text().split()}"


@pytest.fixture
async def link(agent: RunningAgent) -> AsyncIterator[GuestLink]:
    link = await agent.link()
    yield link
    await link.aclose()


@pytest.fixture
def processes(link: GuestLink) -> GuestProcesses:
    return GuestProcesses(link, default_user="root", default_workdir="/")


@pytest.fixture
def files(link: GuestLink) -> GuestFiles:
    return GuestFiles(link)


@pytest.fixture
def ports(link: GuestLink) -> GuestPorts:
    return GuestPorts(link)


@pytest.fixture
def make_agent(tmp_path: Path) -> Iterator[Callable[[int], RunningAgent]]:
    made: list[RunningAgent] = []

    def make(nofile: int) -> RunningAgent:
        folder = tmp_path / f"agent{len(made)}"
        folder.mkdir()
        made.append(RunningAgent(folder, nofile))
        return made[-1]

    yield make
    for running in made:
        running.stop()
