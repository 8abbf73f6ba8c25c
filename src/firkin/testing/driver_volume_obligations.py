"""Obligations of a driver that keeps volumes. One that does not says so by having no keeper."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from firkin.law.driver import Driver
from firkin.law.errors import InvalidSpec, NotFound
from firkin.law.ids import SandboxId, VolumeId
from firkin.law.resources import MIB
from firkin.law.volumes import BootVolume, VolumeKeeper
from firkin.testing.driver_suite import DriverSuite, said

_SIZE = 64 * MIB


async def _write(keeper: VolumeKeeper, volume_id: VolumeId, name: str, data: bytes) -> None:
    async with keeper.opened(volume_id) as root:
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o644, dir_fd=root)
        with os.fdopen(fd, "wb") as file:
            file.write(data)


async def _read(keeper: VolumeKeeper, volume_id: VolumeId, name: str) -> bytes:
    async with keeper.opened(volume_id) as root:
        with os.fdopen(os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=root), "rb") as file:
            return file.read()


class DriverVolumeObligations(DriverSuite):
    @pytest.fixture
    def keeper(self, driver: Driver) -> VolumeKeeper:
        if driver.volumes is None:
            pytest.skip("this driver keeps no volumes")
        return driver.volumes

    async def test_a_volume_is_there_until_it_is_removed(self, driver: Driver, keeper: VolumeKeeper) -> None:
        volume_id = VolumeId("vone")
        await keeper.make(volume_id, _SIZE)
        await keeper.make(VolumeId("vtwo"), _SIZE)
        assert set(await keeper.kept()) == {"vone", "vtwo"}
        await _write(keeper, volume_id, "x", b"kept")
        later = (await self._restarted(driver)).volumes
        assert later is not None
        assert set(await later.kept()) == {"vone", "vtwo"}
        assert await _read(later, volume_id, "x") == b"kept"
        for _ in range(2):
            await later.remove(volume_id)
        assert set(await later.kept()) == {"vtwo"}
        with pytest.raises(NotFound):
            await _read(later, volume_id, "x")

    async def test_who_has_it_open_keeps_it_when_it_is_removed(self, keeper: VolumeKeeper) -> None:
        volume_id = VolumeId("vone")
        await keeper.make(volume_id, _SIZE)
        async with keeper.opened(volume_id) as root:
            await keeper.remove(volume_id)
            os.close(os.open("x", os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=root))

    async def test_instances_share_it_with_each_other_and_the_host(self, driver: Driver, keeper: VolumeKeeper) -> None:
        volume_id = VolumeId("vshared")
        await keeper.make(volume_id, _SIZE)
        await _write(keeper, volume_id, "x", b"from the host")
        instances = []
        for name, path, read_only in (("one", "/mnt/a/b", False), ("two", "/data", True)):
            plan = self.boot_plan(SandboxId(name))
            mounts = (BootVolume(volume_id=volume_id, path=path, read_only=read_only),)
            instances.append(await driver.boot(replace(plan, volumes=mounts)))
        one, two = instances
        assert await said(one, "cat /mnt/a/b/x; echo inside > /mnt/a/b/y") == "from the host"
        assert await said(two, "cat /data/y; { echo no > /data/z; } 2>/dev/null || echo refused") == "inside\nrefused\n"
        assert await _read(keeper, volume_id, "y") == b"inside\n"
        for instance in instances:
            await instance.destroy()
        assert await _read(keeper, volume_id, "y") == b"inside\n"

    async def test_an_impossible_mount_point_leaves_no_instance(self, driver: Driver, keeper: VolumeKeeper) -> None:
        volume_id = VolumeId("vone")
        await keeper.make(volume_id, _SIZE)
        plan = self.boot_plan(SandboxId("unfit"))
        for path in ("/etc/passwd", "/etc/passwd/below"):
            with pytest.raises(InvalidSpec, match="mounted"):
                await driver.boot(replace(plan, volumes=(BootVolume(volume_id=volume_id, path=path),)))
            assert list(await driver.live()) == []
        instance = await driver.boot(replace(plan, volumes=(BootVolume(volume_id=volume_id, path="/data"),)))
        assert await said(instance, "ls -A /data") == ""
