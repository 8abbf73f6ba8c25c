"""Volumes in the engine: names, records, and who has what, over folders in place of disks."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from firkin.engine import volume_registry
from firkin.engine.assembly import VOLUME_THREADS
from firkin.law.errors import (
    AlreadyExists,
    BackendFailure,
    CapacityRejected,
    InvalidSpec,
    UnsupportedCapability,
    WrongState,
)
from firkin.law.ids import VolumeName
from firkin.law.policies import Capacity, Policies
from firkin.law.resources import MIB
from firkin.law.sandboxes import DeleteOptions, SandboxInfo
from firkin.law.snapshots import ForkOptions, PauseOptions
from firkin.law.volumes import (
    BootVolume,
    VolumeAttributes,
    VolumeControl,
    VolumeInfo,
    VolumeMount,
    VolumePath,
    VolumeSpec,
)
from tests.engine.conftest import POLICIES, SPEC, Engine, engine_over
from tests.volumes_in_folders import DriverWithVolumes


@pytest.fixture
def driver(tmp_path: Path) -> DriverWithVolumes:
    return DriverWithVolumes(tmp_path / "volumes")


@pytest.fixture
async def engine(tmp_path: Path, driver: DriverWithVolumes) -> AsyncIterator[Engine]:
    async with engine_over(tmp_path / "state", driver=driver) as started:
        yield started


def volumes(engine: Engine) -> VolumeControl:
    control = engine.backend.volumes
    assert control is not None
    return control


async def made(engine: Engine, name: str = "data", owner: str = "") -> VolumeInfo:
    return await volumes(engine).create(VolumeSpec(name=VolumeName(name), owner=owner))


WITH_DATA = replace(SPEC, volumes=(VolumeMount(name="data", path="/data", read_only=True),))


async def test_the_driver_is_told_what_to_mount_each_time(engine: Engine, driver: DriverWithVolumes) -> None:
    volume = await made(engine)
    wanted = (BootVolume(volume_id=volume.id, path="/data", read_only=True),)
    sandbox = await engine.backend.sandboxes.create(WITH_DATA)
    assert driver.mounted.pop(sandbox.id) == wanted
    assert engine.backend.pauses is not None
    await engine.backend.pauses.pause(sandbox.id, PauseOptions(keep_memory=False))
    await engine.backend.pauses.resume(sandbox.id)
    assert driver.mounted[sandbox.id] == wanted
    [fork] = await engine.backend.snapshots.fork(sandbox.id, ForkOptions())
    assert isinstance(fork, SandboxInfo)
    assert driver.mounted[fork.id] == wanted
    assert fork.volumes == WITH_DATA.volumes


async def test_records_outlive_the_server(tmp_path: Path, driver: DriverWithVolumes) -> None:
    async with engine_over(tmp_path / "state", driver=driver, kill_all=False) as engine:
        volume = await made(engine, owner="ann")
        sandbox = await engine.backend.sandboxes.create(replace(WITH_DATA, owner="ann"))
    async with engine_over(tmp_path / "state", driver=driver) as engine:
        assert await volumes(engine).list() == [volume]
        assert (await engine.backend.sandboxes.inspect(sandbox.id)).volumes == WITH_DATA.volumes
        with pytest.raises(WrongState, match=f"mounted in sandbox {sandbox.id}"):
            await volumes(engine).delete(volume.id)


async def test_a_volume_without_a_record_is_left_alone(
    tmp_path: Path, driver: DriverWithVolumes, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever loses the records must not lose the data as well."""
    (driver.keeper.folder / "vstranger").mkdir()
    async with engine_over(tmp_path / "state", driver=driver) as engine:
        assert await volumes(engine).list() == []
    assert [path.name for path in driver.keeper.folder.iterdir()] == ["vstranger"]
    assert "no record of it" in caplog.text


async def test_a_record_without_a_volume_is_of_something_interrupted(tmp_path: Path, driver: DriverWithVolumes) -> None:
    async with engine_over(tmp_path / "state", driver=driver) as engine:
        volume = await made(engine)
        (driver.keeper.folder / volume.id).rmdir()
    async with engine_over(tmp_path / "state", driver=driver) as engine:
        assert await volumes(engine).list() == []
        await made(engine)  # its name is free again


async def test_a_delete_that_fails_leaves_it_as_it_was(
    engine: Engine, driver: DriverWithVolumes, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = await made(engine)

    async def refuse(volume_id: object) -> None:
        raise BackendFailure("delete a volume", "the test", "no")

    with monkeypatch.context() as broken:
        broken.setattr(driver.keeper, "remove", refuse)
        with pytest.raises(BackendFailure):
            await volumes(engine).delete(volume.id)
    assert await volumes(engine).list() == [volume]
    await volumes(engine).delete(volume.id)


async def test_a_create_that_fails_leaves_neither_record_nor_name(engine: Engine, driver: DriverWithVolumes) -> None:
    driver.keeper.failure = BackendFailure("create a volume", "the test", "no")
    with pytest.raises(BackendFailure):
        await made(engine)
    driver.keeper.failure = None
    assert await volumes(engine).list() == []
    await made(engine)


async def test_a_record_that_cannot_be_kept_takes_its_volume_along(engine: Engine, driver: DriverWithVolumes) -> None:
    """Somebody else wrote the same row: the unique index is the last word."""
    await engine.node.records.run(
        lambda connection: connection.execute("INSERT INTO volumes VALUES ('vother', '', 'data', 1, 0)")
    )
    with pytest.raises(AlreadyExists):
        await made(engine)
    assert list(driver.keeper.folder.iterdir()) == []


async def test_a_sandbox_that_has_ended_has_nothing_mounted(engine: Engine) -> None:
    volume = await made(engine)
    sandbox = await engine.backend.sandboxes.create(WITH_DATA)
    with pytest.raises(WrongState):
        await volumes(engine).delete(volume.id)
    await engine.backend.sandboxes.kill(sandbox.id, 9)
    await volumes(engine).delete(volume.id)
    await engine.backend.sandboxes.delete(sandbox.id, DeleteOptions())


async def test_a_create_that_failed_has_nothing_mounted(engine: Engine, driver: DriverWithVolumes) -> None:
    volume = await made(engine)
    driver.faults.fail_next_boot(BackendFailure("boot", "the test", "no"))
    with pytest.raises(BackendFailure):
        await engine.backend.sandboxes.create(WITH_DATA)
    await volumes(engine).delete(volume.id)


async def test_it_is_in_use_from_the_moment_a_create_begins(engine: Engine, driver: DriverWithVolumes) -> None:
    volume = await made(engine)
    driver.faults.hold_boots()
    creating = asyncio.get_running_loop().create_task(engine.backend.sandboxes.create(WITH_DATA))
    await driver.faults.boot_waits.wait()
    with pytest.raises(WrongState):
        await volumes(engine).delete(volume.id)
    driver.faults.release_boots()
    await creating


async def test_a_volume_of_another_owner_is_unknown(engine: Engine) -> None:
    await made(engine, owner="ann")
    with pytest.raises(InvalidSpec, match="there is no volume 'data'"):
        await engine.backend.sandboxes.create(replace(WITH_DATA, owner="bob"))
    assert await engine.leftovers() == []


async def test_a_cancelled_create_is_finished_all_the_same(engine: Engine) -> None:
    """Half a volume is nobody's wish: whoever asked finds it in the list."""
    asked = asyncio.get_running_loop().create_task(made(engine))
    await asyncio.sleep(0)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    async with asyncio.timeout(5):
        while not await volumes(engine).list():  # noqa: ASYNC110 — nobody tells
            await asyncio.sleep(0.001)


async def test_the_operators_size_and_floor_hold(tmp_path: Path, driver: DriverWithVolumes) -> None:
    policies = replace(POLICIES, default_volume_bytes=32 * MIB)
    async with engine_over(tmp_path / "state", driver=driver, policies=policies) as engine:
        assert (await made(engine)).size_bytes == 32 * MIB
    full = Policies(capacity=Capacity(memory_floor_bytes=0, disk_floor_bytes=1 << 60))
    async with engine_over(tmp_path / "state", driver=driver, policies=full) as engine:
        with pytest.raises(CapacityRejected, match="free disk"):
            await made(engine, "more")


async def test_nobody_has_a_volume_larger_than_the_disk_or_more_volumes_than_a_thousand(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    has = engine.node.gauge.totals().disk_bytes
    with pytest.raises(InvalidSpec, match=f"the host's disk has {has} in all, ask for less"):
        await volumes(engine).create(VolumeSpec(name=VolumeName("huge"), size_bytes=has + 1))

    monkeypatch.setattr(volume_registry, "MOST_OF_AN_OWNER", 2)
    several = [made(engine, name, owner="ann") for name in ("one", "two", "three")]
    answers = await asyncio.gather(*several, return_exceptions=True)
    [refused] = [answer for answer in answers if isinstance(answer, InvalidSpec)]
    assert str(refused).endswith("there are 2 already, which is the most that one API key can have; delete some first")
    await made(engine, "three", owner="bob")
    await volumes(engine).delete(next(answer.id for answer in answers if isinstance(answer, VolumeInfo)))
    await made(engine, "four", owner="ann")


async def test_a_driver_without_volumes_refuses_them(tmp_path: Path) -> None:
    async with engine_over(tmp_path / "state") as engine:
        assert engine.backend.volumes is None
        with pytest.raises(UnsupportedCapability, match="keeps no volumes"):
            await engine.backend.sandboxes.create(WITH_DATA)
        assert await engine.leftovers() == []


async def test_whoever_goes_before_his_turn_leaves_no_descriptor(engine: Engine) -> None:
    volume = await made(engine)
    files = volumes(engine).files
    before = len(os.listdir("/proc/self/fd"))
    gate = threading.Event()
    busy = [engine.node.volume_threads.submit("", gate.wait) for _ in range(VOLUME_THREADS)]
    loop = asyncio.get_running_loop()
    path = VolumePath("/x")
    waiting = [
        loop.create_task(files.make_directory(volume.id, path, VolumeAttributes())),
        loop.create_task(files.write(volume.id, path, nothing(), VolumeAttributes())),
        loop.create_task(files.import_tar(volume.id, path, nothing())),
        loop.create_task(files.read(volume.id, path)),
    ]
    await asyncio.sleep(0.01)  # each is in the queue by then; earlier would be as well
    for task in waiting:
        task.cancel()
    assert [type(end) for end in await asyncio.gather(*waiting, return_exceptions=True)] == [asyncio.CancelledError] * 4
    gate.set()
    await asyncio.gather(*(asyncio.wrap_future(one) for one in busy))
    async with asyncio.timeout(5):
        while len(os.listdir("/proc/self/fd")) > before:  # noqa: ASYNC110 — threads tell nobody
            await asyncio.sleep(0.001)


async def nothing() -> AsyncIterator[bytes]:
    for piece in ():
        yield piece
