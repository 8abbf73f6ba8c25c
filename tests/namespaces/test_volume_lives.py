"""Volumes over the ends of servers and sandboxes: found again, never bound twice, nothing left."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from firkin import Runtime
from firkin.law.errors import InvalidSpec, NotFound, WrongState
from firkin.law.ids import TemplateId, VolumeName
from firkin.law.processes import Command
from firkin.law.sandboxes import SandboxSpec
from firkin.law.snapshots import PauseOptions
from firkin.law.templates import TemplateSpec
from firkin.law.volumes import VolumeAttributes, VolumeControl, VolumeInfo, VolumeMount, VolumePath, VolumeSpec
from firkin.runtime.sandbox import Sandbox
from tests.namespaces.conftest import backend_at

MIB = 1024 * 1024


@asynccontextmanager
async def opened(state: Path, *, kill_all: bool = False) -> AsyncIterator[Runtime]:
    async with Runtime.open(backend_at(state), kill_all=kill_all) as runtime:
        await runtime.templates.prepare(TemplateSpec.host(id=TemplateId("base")))
        yield runtime


def volumes(runtime: Runtime) -> VolumeControl:
    control = runtime.backend.volumes
    assert control is not None
    return control


def with_volume(name: str = "data", **fields: object) -> SandboxSpec:
    mount = VolumeMount(name=name, path="/data", **fields)  # type: ignore[arg-type]  # forwarded fields
    return SandboxSpec.from_template("base", volumes=(mount,))


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def put(runtime: Runtime, volume: VolumeInfo, path: str, data: bytes) -> None:
    await volumes(runtime).files.write(volume.id, VolumePath(path), pieces(data), VolumeAttributes())


async def get(runtime: Runtime, volume: VolumeInfo, path: str) -> bytes:
    _, body = await volumes(runtime).files.read(volume.id, VolumePath(path))
    return b"".join([piece async for piece in body])


async def said(sandbox: Sandbox, text: str) -> str:
    return (await sandbox.exec(Command.shell(text))).stdout.decode()


def loops(volume: VolumeInfo) -> list[str]:
    found = []
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        with suppress(OSError):
            if volume.id in path.read_text():
                found.append(path.parts[3])
    return found


async def unbound(volume: VolumeInfo) -> None:
    async with asyncio.timeout(10):
        while loops(volume):  # noqa: ASYNC110 — the kernel tells nobody
            await asyncio.sleep(0.02)


async def test_a_restarted_server_uses_the_same_loop_device(tmp_path: Path) -> None:
    """The sandbox lives on with its mount; a second device over the same image would destroy it."""
    async with opened(tmp_path) as runtime:
        volume = await volumes(runtime).create(VolumeSpec(name=VolumeName("data")))
        sandbox = await runtime.sandboxes.create(with_volume())
        await said(sandbox, "echo 1 > /data/x")
    before = loops(volume)
    assert len(before) == 1
    async with opened(tmp_path, kill_all=True) as runtime:
        assert await volumes(runtime).list() == [volume]
        again = await runtime.sandboxes.attach(sandbox.id, require_running=True)
        assert (await runtime.sandboxes.inspect(sandbox.id)).volumes == (VolumeMount(name="data", path="/data"),)
        await put(runtime, volume, "/y", b"2")
        assert await said(again, "cat /data/x /data/y") == "1\n2"
        async with await runtime.sandboxes.create(with_volume()) as other:
            assert await said(other, "cat /data/x") == "1\n"
            assert loops(volume) == before
        with pytest.raises(WrongState):
            await volumes(runtime).delete(volume.id)
    await unbound(volume)


async def test_a_server_that_is_gone_leaves_nothing_of_its_own(tmp_path: Path) -> None:
    async with opened(tmp_path) as runtime:
        volume = await volumes(runtime).create(VolumeSpec(name=VolumeName("data")))
        await put(runtime, volume, "/x", b"kept")
        [device] = loops(volume)
    await unbound(volume)
    assert not Path(f"/sys/block/{device}").exists(), "a closed server takes its unused devices along"
    async with opened(tmp_path) as runtime:
        assert await get(runtime, volume, "/x") == b"kept"
        await volumes(runtime).delete(volume.id)
        with pytest.raises(NotFound):
            await volumes(runtime).get(volume.id)
    assert list((tmp_path / "volumes").iterdir()) == []


async def test_a_sandbox_that_is_paused_without_memory_comes_back_with_it(tmp_path: Path) -> None:
    async with opened(tmp_path) as runtime:
        volume = await volumes(runtime).create(VolumeSpec(name=VolumeName("data")))
        sandbox = await runtime.sandboxes.create(with_volume(read_only=True))
        assert runtime.backend.pauses is not None
        await runtime.backend.pauses.pause(sandbox.id, PauseOptions(keep_memory=False))
    await unbound(volume)
    async with opened(tmp_path, kill_all=True) as runtime:
        with pytest.raises(WrongState):
            await volumes(runtime).delete(volume.id)
        await put(runtime, volume, "/x", b"later")
        assert runtime.backend.pauses is not None
        await runtime.backend.pauses.resume(sandbox.id)
        again = await runtime.sandboxes.attach(sandbox.id)
        assert await said(again, "cat /data/x; touch /data/y 2>/dev/null || echo read-only") == "laterread-only\n"


_SERVER = """
import asyncio, sys
from pathlib import Path
from tests.namespaces.test_volume_lives import opened, put, volumes, with_volume
from firkin.law.ids import VolumeName
from firkin.law.volumes import VolumeSpec

async def main():
    async with opened(Path(sys.argv[1])) as runtime:
        volume = await volumes(runtime).create(VolumeSpec(name=VolumeName("data")))
        await put(runtime, volume, "/x", b"synced")
        if sys.argv[2] == "sandbox":
            await runtime.sandboxes.create(with_volume())
        print(volume.id, flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""


@pytest.mark.parametrize("what", ["sandbox", "content"])
async def test_a_killed_server_loses_no_volume_and_leaves_no_mount(tmp_path: Path, what: str) -> None:
    """Its own mount goes with it; that of its sandbox goes with the sandbox."""
    server = subprocess.Popen(  # noqa: ASYNC220 — to be killed
        [sys.executable, "-c", _SERVER, str(tmp_path), what], stdout=subprocess.PIPE, text=True, cwd=Path.cwd()
    )
    try:
        assert server.stdout is not None
        volume_id = (await asyncio.to_thread(server.stdout.readline)).strip()
        assert volume_id
    finally:
        server.send_signal(signal.SIGKILL)
        await asyncio.to_thread(server.communicate)
    async with opened(tmp_path, kill_all=True) as runtime:
        [volume] = await volumes(runtime).list()
        assert volume.id == volume_id
        if what == "content":
            await unbound(volume)
        assert await get(runtime, volume, "/x") == b"synced"
        assert len(loops(volume)) == 1
    await unbound(volume)


async def test_what_an_interrupted_create_left_is_removed(tmp_path: Path) -> None:
    async with opened(tmp_path):
        pass
    (tmp_path / "volumes" / "vhalf.new").write_bytes(b"x")
    async with opened(tmp_path) as runtime:
        assert await volumes(runtime).list() == []
    assert list((tmp_path / "volumes").iterdir()) == []


async def test_a_create_that_fails_or_is_given_up_leaves_no_mount(tmp_path: Path) -> None:
    async with opened(tmp_path, kill_all=True) as runtime:
        volume = await volumes(runtime).create(VolumeSpec(name=VolumeName("data")))
        spec = SandboxSpec.from_template("base", volumes=(VolumeMount(name="data", path="/usr/nowhere"),))
        with pytest.raises(InvalidSpec, match="Read-only"):
            await runtime.sandboxes.create(spec)
        for delay_s in (0.0, 0.002, 0.005, 0.01, 0.02):
            with suppress(TimeoutError):
                async with asyncio.timeout(delay_s):
                    sandbox = await runtime.sandboxes.create(with_volume())
                    await sandbox.delete(force=True)
        for info in await runtime.sandboxes.list():
            with suppress(NotFound):  # the deletion that was given up goes on, and was first
                await runtime.sandboxes.delete(info.id, force=True)
        await unbound(volume)
        await volumes(runtime).delete(volume.id)


async def test_many_at_once_share_one_device(tmp_path: Path) -> None:
    async with opened(tmp_path, kill_all=True) as runtime:
        volume = await volumes(runtime).create(VolumeSpec(name=VolumeName("data"), size_bytes=256 * MIB))
        others = [
            await volumes(runtime).create(VolumeSpec(name=VolumeName(f"o{n}"), size_bytes=64 * MIB)) for n in range(4)
        ]
        sandboxes = await asyncio.gather(*(runtime.sandboxes.create(with_volume()) for _ in range(8)))
        apart = await asyncio.gather(*(runtime.sandboxes.create(with_volume(other.name)) for other in others))
        await asyncio.gather(*(said(one, f"echo {n} > /data/{n}; sync") for n, one in enumerate(sandboxes)))
        assert len(loops(volume)) == 1
        assert [len(loops(other)) for other in others] == [1] * 4
        assert (await said(sandboxes[0], "cat /data/*")).split() == [str(n) for n in range(8)]
        assert await said(apart[0], "ls -A /data") == ""
    for one in (volume, *others):
        await unbound(one)
    image = tmp_path / "volumes" / f"{volume.id}.img"
    checked = subprocess.run(["e2fsck", "-fn", image], capture_output=True, text=True, check=False)  # noqa: ASYNC221
    assert checked.returncode == 0, checked.stdout


async def test_a_write_that_is_cancelled_leaves_nothing(tmp_path: Path) -> None:
    async def endless() -> AsyncIterable[bytes]:
        while True:
            yield b"x" * MIB
            await asyncio.sleep(0)

    async with opened(tmp_path) as runtime:
        volume = await volumes(runtime).create(VolumeSpec(name=VolumeName("data"), size_bytes=512 * MIB))
        files = volumes(runtime).files
        with suppress(TimeoutError):
            async with asyncio.timeout(0.1):
                await files.write(volume.id, VolumePath("/x"), endless(), VolumeAttributes())  # type: ignore[arg-type]
        assert list(await files.list(volume.id, VolumePath("/"))) == []
        async with asyncio.timeout(10):  # the blocks of a file without a name go with its last descriptor
            while (await volumes(runtime).usage(volume.id)).used_bytes > MIB:  # noqa: ASYNC110 — nobody tells
                await asyncio.sleep(0.02)
