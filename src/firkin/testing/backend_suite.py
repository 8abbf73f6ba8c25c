"""What the backend obligations share: who supplies the backend, and a sandbox for each test."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from itertools import pairwise

import pytest
import pytest_asyncio

from firkin.law.backend import FilesystemControl, ProcessControl, SandboxBackend
from firkin.law.capabilities import Capabilities, CapabilityName
from firkin.law.errors import NotFound
from firkin.law.ids import SandboxId
from firkin.law.policies import Capacity, Policies
from firkin.law.processes import Command, Exited
from firkin.law.sandboxes import Never, SandboxFilter, SandboxInfo, SandboxSpec
from firkin.law.states import SandboxState
from firkin.law.templates import HostSource, TemplateInfo, TemplateSpec

MakeBackend = Callable[[Policies], Awaitable[SandboxBackend]]

FREE = Policies(capacity=Capacity(memory_floor_bytes=0, disk_floor_bytes=0))
PATIENCE_S = 10.0
_ALL_WITHIN_S = 60.0  # of several acts that take turns; a machine that is emulated boots for seconds

ECHO_SERVER = """
import socket
server = socket.create_server(("127.0.0.1", {port}))
while True:
    peer, _ = server.accept()
    while data := peer.recv(65536):
        peer.sendall(data)
    peer.close()
"""


async def eventually(holds: Callable[[], Awaitable[bool]], *, within_s: float = PATIENCE_S) -> None:
    """Ask again and again until `holds`; AssertionError when the time is up."""
    until = time.monotonic() + within_s
    while not await holds():
        assert time.monotonic() < until, f"it did not come true within {within_s:g} s"
        await asyncio.sleep(0.01)


async def said(processes: ProcessControl, sandbox_id: SandboxId, text: str) -> str:
    """What shell text that must succeed writes, as the default user."""
    output = await processes.run(sandbox_id, Command.shell(text))
    assert output.status == Exited(0), (text, output)
    return output.stdout.decode()


async def outcomes(*attempts: Awaitable[object]) -> list[object]:
    """How each of several attempts at once came out: its value or its error."""
    async with asyncio.timeout(_ALL_WITHIN_S):
        return await asyncio.gather(*attempts, return_exceptions=True)


def failures(answers: Sequence[object]) -> list[BaseException]:
    return [answer for answer in answers if isinstance(answer, BaseException)]


async def linear(backend: SandboxBackend, sandbox_id: SandboxId) -> list[SandboxState]:
    """The states it went through, each of which must follow from the one before."""
    history = await backend.sandboxes.history(sandbox_id)
    assert history.changes[0].was is None
    for before, after in pairwise(history.changes):
        assert after.was is before.became
        assert after.at >= before.at
    assert all(change.cause and change.actor for change in history.changes)
    assert history.info.state is history.changes[-1].became
    return [change.became for change in history.changes]


class BackendSuite:
    """Supply the fixture `make_backend`: policies in, a *started* backend out, over the same state at each call.

    `template_spec` is what the sandboxes of all tests are made from. `listener`
    is a command that serves connections on a port and sends back what it gets.
    """

    pytestmark = pytest.mark.asyncio
    template_spec = TemplateSpec(source=HostSource())

    @pytest.fixture
    def make_backend(self) -> MakeBackend:
        raise NotImplementedError

    def listener(self, port: int) -> Command:
        return Command.argv("python3", "-c", ECHO_SERVER.format(port=port))

    async def leftovers(self, backend: SandboxBackend) -> list[str]:
        """What the substrate still holds, as names. Override it: a record can be wrong about that."""
        return [info.id for info in await backend.sandboxes.list(SandboxFilter())]

    @pytest_asyncio.fixture
    async def backend(self, make_backend: MakeBackend) -> AsyncIterator[SandboxBackend]:
        backend = await make_backend(FREE)
        try:
            yield backend
        finally:
            await backend.aclose(kill_all=True)

    @pytest_asyncio.fixture
    async def capabilities(self, backend: SandboxBackend) -> Capabilities:
        return await backend.capabilities()

    @pytest_asyncio.fixture
    async def template(self, backend: SandboxBackend) -> TemplateInfo:
        return await backend.templates.prepare(self.template_spec)

    @pytest_asyncio.fixture
    async def sandbox(self, backend: SandboxBackend, template: TemplateInfo) -> SandboxInfo:
        return await backend.sandboxes.create(self.spec(template))

    @pytest.fixture
    def processes(self, backend: SandboxBackend, capabilities: Capabilities) -> ProcessControl:
        if backend.processes is None:
            pytest.skip(f"no processes here: {capabilities.refusal(CapabilityName.PROCESS_RUN)}")
        return backend.processes

    @pytest.fixture
    def files(self, backend: SandboxBackend, capabilities: Capabilities) -> FilesystemControl:
        if backend.filesystems is None:
            pytest.skip(f"no files here: {capabilities.refusal(CapabilityName.FILESYSTEM_READ)}")
        return backend.filesystems

    def spec(self, template: TemplateInfo, **fields: object) -> SandboxSpec:
        return SandboxSpec.from_template(template.id, **{"deadline": Never(), **fields})

    async def gone(self, backend: SandboxBackend, sandbox_id: SandboxId) -> NotFound:
        """Wait until the sandbox is not found; the error that says how it ended."""
        found: list[NotFound] = []

        async def ended() -> bool:
            try:
                await backend.sandboxes.inspect(sandbox_id)
            except NotFound as error:
                found.append(error)
            return bool(found)

        await eventually(ended)
        return found[0]
