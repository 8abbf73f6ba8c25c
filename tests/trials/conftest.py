"""A real server in a process of its own, to be killed and started again."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from firkin.drivers.boxes.host_checks import check

KEY = "e2b_" + "ab" * 20


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    readiness = check(Path("/var/tmp"))
    for item in items:
        if "tests/trials" in str(item.path):
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.timeout(1200))
            if not readiness.ready:
                item.add_marker(pytest.mark.skip(reason="; ".join(readiness.reasons)))


class Server:
    """`firkin serve` on one state directory and one port, over as many lives as the trial gives it."""

    def __init__(self, state_dir: Path) -> None:
        self._state = state_dir
        self._process: asyncio.subprocess.Process | None = None
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def sdk(self) -> dict[str, str]:
        return {"api_key": KEY, "api_url": self.url, "sandbox_url": self.url}

    async def start(self, *extra: str) -> None:
        program = str(Path(sys.executable).parent / "firkin")
        place = ("--state-dir", str(self._state), "--port", str(self.port), "--api-key", KEY)
        self._process = await asyncio.create_subprocess_exec(
            program, "serve", *place, *extra, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
        )
        assert self._process.stdout is not None
        async with asyncio.timeout(60):
            line = (await self._process.stdout.readline()).decode()
        assert line.startswith("firkin ready: http://"), line
        self.port = int(line.rsplit(":", 1)[1])

    async def firkin(self, *words: str) -> str:
        """A command of the operator's: what it writes."""
        program = str(Path(sys.executable).parent / "firkin")
        asked = (program, *words, "--state-dir", str(self._state))
        process = await asyncio.create_subprocess_exec(*asked, stdout=asyncio.subprocess.PIPE)
        async with asyncio.timeout(60):
            said, _ = await process.communicate()
        assert process.returncode == 0, said
        return said.decode()

    async def kill(self) -> None:
        await self._end(signal.SIGKILL)

    async def stop(self) -> None:
        await self._end(signal.SIGTERM)

    async def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            process.send_signal(number)
            async with asyncio.timeout(60):
                await process.wait()

    def launcher_pids(self) -> list[int]:
        """The server's helper processes: its direct children."""
        assert self._process is not None
        found = []
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                try:
                    stat = Path(f"/proc/{entry}/stat").read_text()
                except OSError:
                    continue
                if int(stat.rsplit(")", 1)[1].split()[1]) == self._process.pid:
                    found.append(int(entry))
        return found


@pytest_asyncio.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    made = Server(tmp_path / "state")
    await made.start()
    yield made
    await made.kill()
    await made.start("--kill-on-exit")
    await made.stop()
