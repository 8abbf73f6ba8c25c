"""A capture costs a sandbox nothing, whatever its programs hold: among it all that runsc cannot write down.

`runsc checkpoint` ends a sandbox of which it cannot write something, and leaves no image. Whoever wants to
capture memory by it has to get past this test first; see "Why memory is in no snapshot" in docs/isolation.md.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest

from firkin.drivers.gvisor.driver import GvisorDriver, GvisorTier
from firkin.law.driver import Driver
from firkin.law.ids import SandboxId
from firkin.law.network import NetworkPolicy
from firkin.law.snapshots import SnapshotKind
from firkin.testing.driver_capture_obligations import CaptureSuite
from firkin.testing.driver_suite import begun, said
from tests.contract.boxes import BoxKind, BoxSuite

pytestmark = pytest.mark.host

_COUNTING = """
import itertools, os, time
def count(act):
    for number in itertools.count(1):
        act()
        with open("/srv/aside", "w") as file:
            file.write(str(number))
        os.rename("/srv/aside", "/srv/rounds")
        time.sleep(0.01)
"""
_OWN = """
import socket
asking = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
asking.connect(("192.0.2.1", 9))
own = asking.getsockname()[0]
"""
_PROGRAMS = {
    "a deleted file": """
import tempfile
file = tempfile.TemporaryFile(dir="/srv")
count(lambda: (file.write(b"x"), file.flush(), file.seek(0), file.read(1), file.seek(0)))
""",
    "a deleted working directory": """
os.mkdir("/srv/gone"); os.chdir("/srv/gone"); os.rmdir("/srv/gone")
count(lambda: os.stat("."))
""",
    "a replaced file in memory": """
import mmap
with open("/srv/mapped", "wb") as file:
    file.write(bytes(8192))
with open("/srv/mapped", "r+b") as file:
    mapped = mmap.mmap(file.fileno(), 8192)
with open("/srv/newer", "wb") as file:
    file.write(bytes(8192))
os.rename("/srv/newer", "/srv/mapped")
count(mapped.flush)
""",
    "a connection": f"""{_OWN}
asking.close()
listener = socket.create_server((own, 8000))
near = socket.create_connection((own, 8000))
far, _ = listener.accept()
count(lambda: (near.send(b"x"), far.recv(1)[0]))
""",
    "a connected datagram socket": f"""{_OWN}
count(asking.getpeername)
""",
    "a call of its own to the host": """
import socket
call = socket.socket(socket.AF_UNIX)
call.connect("/.firkin/host/agent")
count(call.getpeername)
""",
}


class TestGvisorCaptures(BoxSuite, CaptureSuite):
    kind: ClassVar[BoxKind] = GvisorDriver
    tier = GvisorTier("")

    async def test_captures_are_of_files(self, driver: Driver) -> None:
        assert driver.captures is SnapshotKind.FILESYSTEM

    @pytest.mark.parametrize("holding", _PROGRAMS)
    async def test_a_program_runs_on_after_a_capture(self, driver: Driver, tmp_path: Path, holding: str) -> None:
        plan = replace(self.boot_plan(SandboxId("source")), network=NetworkPolicy(internet=True))
        source = await driver.boot(plan)
        await begun(source, f"exec python3 -c '{_COUNTING}{_PROGRAMS[holding]}' 2> /srv/complaint")

        async def rounds(more_than: int) -> int:
            for _ in range(100):
                done = int("0" + await said(source, "cat /srv/rounds 2> /dev/null || true"))
                if done > more_than:
                    return done
                await asyncio.sleep(0.05)
            raise AssertionError(await said(source, "cat /srv/complaint"))

        before = await rounds(0)
        captured = await self._captured(source, tmp_path / "captured")
        assert await rounds(await rounds(before))
        twin = await driver.boot(replace(plan, sandbox_id=SandboxId("twin"), captured=captured))
        assert int(await said(twin, "cat /srv/rounds")) >= before
