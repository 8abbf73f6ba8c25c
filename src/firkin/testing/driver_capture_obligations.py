"""Obligations of a driver: files are captured at one instant, booted from, and kept from one boot to the next."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from firkin.law.capabilities import CapabilityName
from firkin.law.driver import Driver, Instance
from firkin.law.errors import CapacityRejected, FirkinError
from firkin.law.ids import SandboxId
from firkin.law.snapshots import SnapshotKind
from firkin.testing.driver_identity_obligations import BOOT_ID, COUNTING, silent
from firkin.testing.driver_suite import DriverSuite, becomes, begun, needs, said, talking

_CAPTURES = (CapabilityName.SNAPSHOT_CAPTURE, CapabilityName.SNAPSHOT_RESTORE)

_MAKE = """
mkdir -p /srv/box/inner; chmod 700 /srv/box
echo content > /srv/box/file; chmod 4750 /srv/box/file
ln -s box/file /srv/link; ln -s /nowhere /srv/dangling
touch /srv/theirs; chown user /srv/theirs
printf 'a b' > '/srv/odd name'
"""


async def _look(instance: Instance) -> list[str]:
    """What `_MAKE` made, as far as it can be told from inside."""
    texts = [f"stat -c '%a %U' {path}" for path in ("/srv/box", "/srv/box/file", "/srv/theirs")]
    texts += ["cat /srv/link", "cat '/srv/odd name'"]
    return [await said(instance, text) for text in texts]


async def _metadata(instance: Instance, path: str) -> object:
    async with talking(instance) as talk:
        return ((await talk.call("stat", path=path, follow=False)).result or {}).get("metadata")


async def _links(instance: Instance) -> list[object]:
    async with talking(instance) as talk:
        return [
            ((await talk.call("readlink", path=path)).result or {}).get("target")
            for path in ("/srv/link", "/srv/dangling")
        ]


async def _lines(driver: Driver, twin: Instance) -> str:
    """What `COUNTING` had written, and in a machine that goes on what it has written since."""
    if driver.captures is SnapshotKind.CONTINUATION:
        await _all_end(twin)
    return await said(twin, "cat /tmp/lines")


async def _all_end(twin: Instance) -> None:
    """End what was begun by this suite, and see that it has ended."""
    async with talking(twin) as talk:
        while running := ((await talk.call("processes")).result or {})["processes"]:
            for process in running:
                await talk.call("signal", pid=process["pid"], signal=9)


_ROOM = 1 << 40


class CaptureSuite(DriverSuite):
    async def _captured(self, instance: Instance, into: Path) -> str:
        into.mkdir()
        await instance.capture(into, room_bytes=_ROOM)
        assert list(into.iterdir()), "a capture without files"
        return str(into)

    async def _booted(self, driver: Driver, name: str, captured: str) -> Instance:
        return await driver.boot(replace(self.boot_plan(SandboxId(name)), captured=captured))


class CaptureObligations(CaptureSuite):
    async def test_files_modes_owners_and_links_come_back(self, driver: Driver, tmp_path: Path) -> None:
        await needs(driver, *_CAPTURES)
        source = await driver.boot(self.boot_plan(SandboxId("source")))
        await said(source, _MAKE)
        twin = await self._booted(driver, "twin", await self._captured(source, tmp_path / "captured"))
        assert await _look(twin) == await _look(source)
        assert await _links(twin) == ["box/file", "/nowhere"]

    async def test_metadata_of_files_comes_back(self, driver: Driver, tmp_path: Path) -> None:
        await needs(driver, *_CAPTURES)
        source = await driver.boot(self.boot_plan(SandboxId("source")))
        async with talking(source) as talk:
            stream = await talk.request(
                "write", path="/tmp/m", user="", append=False, mode=0o644, parents=False, metadata={"k": "v"}
            )
            await talk.end(stream)
            assert (await talk.finished(stream)).fault is None
        twin = await self._booted(driver, "twin", await self._captured(source, tmp_path / "captured"))
        assert await _metadata(twin, "/tmp/m") == {"k": "v"}

    async def test_processes_are_captured_if_and_only_if_the_driver_says_so(
        self, driver: Driver, tmp_path: Path
    ) -> None:
        await needs(driver, *_CAPTURES)
        source = await driver.boot(self.boot_plan(SandboxId("source")))
        await begun(source, "sleep 1000")
        twin = await self._booted(driver, "twin", await self._captured(source, tmp_path / "captured"))
        async with talking(twin) as talk:
            found = ((await talk.call("processes")).result or {})["processes"]
        assert len(found) == (driver.captures is SnapshotKind.CONTINUATION)
        async with talking(source) as talk:
            assert len(((await talk.call("processes")).result or {})["processes"]) == 1

    async def test_a_captured_instance_runs_on(self, driver: Driver, tmp_path: Path) -> None:
        await needs(driver, *_CAPTURES)
        source = await driver.boot(self.boot_plan(SandboxId("source")))
        mine = await said(source, BOOT_ID)
        await self._captured(source, tmp_path / "captured")
        assert await said(source, BOOT_ID) == mine

    async def test_a_frozen_instance_is_captured_and_stays_frozen(self, driver: Driver, tmp_path: Path) -> None:
        await needs(driver, *_CAPTURES)
        source = await driver.boot(self.boot_plan(SandboxId("source")))
        await begun(source, COUNTING)
        await becomes(source, "[ -s /tmp/lines ]; echo $?", "0\n")
        await source.freeze()
        captured = [await self._captured(source, tmp_path / name) for name in ("one", "two")]
        assert await silent(source)
        one, two = [
            await _lines(driver, await self._booted(driver, f"twin{number}", path))
            for number, path in enumerate(captured)
        ]
        assert one.startswith(two) or two.startswith(one)
        if driver.captures is SnapshotKind.FILESYSTEM:
            assert one == two
        await source.thaw()
        lines = await said(source, "cat /tmp/lines")
        assert lines.startswith(one) or one.startswith(lines)

    async def test_a_capture_under_writes_is_one_instant(self, driver: Driver, tmp_path: Path) -> None:
        """Lines go to one file and then to another: what the second holds, the first has held before."""
        await needs(driver, *_CAPTURES)
        source = await driver.boot(self.boot_plan(SandboxId("source")))
        await begun(source, "i=0; while true; do i=$((i+1)); echo $i >> /tmp/first; echo $i >> /tmp/second; done")
        await becomes(source, "[ -s /tmp/second ]; echo $?", "0\n")
        twin = await self._booted(driver, "twin", await self._captured(source, tmp_path / "captured"))
        if driver.captures is SnapshotKind.CONTINUATION:  # the writer is there as well: what counts is when it stops
            await _all_end(twin)
        first, second = [await said(twin, f"cat /tmp/{name}") for name in ("first", "second")]
        assert second
        assert first.startswith(second)
        assert first.count("\n") - second.count("\n") <= 1
        if driver.captures is SnapshotKind.FILESYSTEM:
            assert (await said(source, "cat /tmp/first")).startswith(first)

    async def test_a_capture_outlives_its_source(self, driver: Driver, tmp_path: Path) -> None:
        await needs(driver, *_CAPTURES)
        source = await driver.boot(self.boot_plan(SandboxId("source")))
        await said(source, "echo kept > /tmp/kept")
        captured = await self._captured(source, tmp_path / "captured")
        await source.destroy()
        await driver.discard(source.sandbox_id)
        later = await self._restarted(driver)
        assert await said(await self._booted(later, "twin", captured), "cat /tmp/kept") == "kept\n"

    async def test_two_boots_of_one_capture_are_apart(self, driver: Driver, tmp_path: Path) -> None:
        await needs(driver, *_CAPTURES)
        source = await driver.boot(self.boot_plan(SandboxId("source")))
        await said(source, "echo first > /tmp/file")
        captured = await self._captured(source, tmp_path / "captured")
        one, two = await asyncio.gather(*(self._booted(driver, name, captured) for name in ("one", "two")))
        await said(one, "echo changed > /tmp/file; echo > /tmp/more")
        await one.destroy()
        await driver.discard(one.sandbox_id)
        three = await self._booted(driver, "three", captured)
        for instance in (two, three, source):
            assert await said(instance, "cat /tmp/file; [ ! -e /tmp/more ]") == "first\n"

    async def test_a_boot_from_a_capture_has_its_own_identity(self, driver: Driver, tmp_path: Path) -> None:
        await needs(driver, *_CAPTURES)
        plan = replace(self.boot_plan(SandboxId("source")), hostname="source", machine_id="1" * 32)
        source = await driver.boot(plan)
        captured = await self._captured(source, tmp_path / "captured")
        twin = await driver.boot(
            replace(self.boot_plan(SandboxId("twin")), captured=captured, hostname="twin", machine_id="2" * 32)
        )
        assert await said(twin, "hostname; cat /etc/hostname /etc/machine-id") == "twin\ntwin\n" + "2" * 32 + "\n"
        assert "source" not in (await said(twin, "cat /etc/hosts")).split()
        assert await said(twin, BOOT_ID) != await said(source, BOOT_ID)

    async def test_a_capture_of_a_capture(self, driver: Driver, tmp_path: Path) -> None:
        await needs(driver, *_CAPTURES)
        source = await driver.boot(self.boot_plan(SandboxId("source")))
        await said(source, "echo one > /tmp/one")
        child = await self._booted(driver, "child", await self._captured(source, tmp_path / "first"))
        await said(child, "echo two > /tmp/two; rm /tmp/one")
        grandchild = await self._booted(driver, "grandchild", await self._captured(child, tmp_path / "second"))
        assert await said(grandchild, "cat /tmp/two; [ ! -e /tmp/one ]") == "two\n"

    async def test_an_ended_instance_is_not_captured(self, driver: Driver, tmp_path: Path) -> None:
        await needs(driver, *_CAPTURES)
        source = await driver.boot(self.boot_plan(SandboxId("source")))
        await source.destroy()
        into = tmp_path / "captured"
        into.mkdir()
        with pytest.raises(FirkinError):
            await source.capture(into, room_bytes=_ROOM)

    async def test_a_capture_without_room_is_refused_and_the_instance_runs_on(
        self, driver: Driver, tmp_path: Path
    ) -> None:
        await needs(driver, *_CAPTURES)
        source = await driver.boot(self.boot_plan(SandboxId("source")))
        assert await said(source, "echo some bytes > /tmp/file; echo well") == "well\n"
        into = tmp_path / "captured"
        into.mkdir()
        with pytest.raises(CapacityRejected):
            await source.capture(into, room_bytes=1)
        assert await said(source, "echo well") == "well\n"
        await source.capture(into, room_bytes=_ROOM)

    async def test_a_cancelled_capture_lets_the_instance_run_on(self, driver: Driver, tmp_path: Path) -> None:
        await needs(driver, *_CAPTURES)
        source = await driver.boot(self.boot_plan(SandboxId("source")))
        for number, wait_s in enumerate((0.0, 0.001, 0.005)):
            into = tmp_path / str(number)
            into.mkdir()
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await source.capture(into, room_bytes=_ROOM)
            assert await said(source, "echo well") == "well\n"

    async def test_a_boot_from_what_is_no_capture_leaves_nothing(self, driver: Driver, tmp_path: Path) -> None:
        await needs(driver, *_CAPTURES)
        with pytest.raises((FirkinError, OSError)):
            await self._booted(driver, "lost", str(tmp_path))
        assert list(await driver.live()) == []
        await driver.discard(SandboxId("lost"))
        assert list(await driver.sweep(keep=())) == []


class ContinuationObligations(DriverSuite):
    """Files stay when their instance is destroyed, until they are discarded."""

    async def _left(self, driver: Driver, name: str = "continued") -> Instance:
        """A destroyed instance that had written a file."""
        instance = await driver.boot(self.boot_plan(SandboxId(name)))
        await said(instance, "echo kept > /tmp/kept")
        await instance.destroy()
        return instance

    async def _continued(self, driver: Driver, name: str = "continued") -> Instance:
        return await driver.boot(replace(self.boot_plan(SandboxId(name)), continues=True))

    async def test_a_boot_continues_with_the_files_and_nothing_else(self, driver: Driver) -> None:
        await needs(driver, CapabilityName.PAUSE_CAPTURE)
        instance = await driver.boot(self.boot_plan(SandboxId("continued")))
        await said(instance, _MAKE)
        await begun(instance, "sleep 1000")
        seen, boot_id = await _look(instance), await said(instance, BOOT_ID)
        await instance.destroy()
        again = await self._continued(driver)
        assert again.ref != instance.ref
        assert await _look(again) == seen
        assert await said(again, BOOT_ID) != boot_id
        async with talking(again) as talk:
            assert (await talk.call("processes")).result == {"processes": []}

    async def test_files_are_continued_again_and_again(self, driver: Driver) -> None:
        await needs(driver, CapabilityName.PAUSE_CAPTURE)
        await self._left(driver)
        for number in range(3):
            instance = await self._continued(driver)
            await said(instance, f"echo {number} >> /tmp/kept")
            await instance.destroy()
        assert await said(await self._continued(driver), "cat /tmp/kept") == "kept\n0\n1\n2\n"

    async def test_a_frozen_instance_leaves_its_files_too(self, driver: Driver) -> None:
        await needs(driver, CapabilityName.PAUSE_CAPTURE)
        instance = await driver.boot(self.boot_plan(SandboxId("continued")))
        await said(instance, "echo kept > /tmp/kept")
        await instance.freeze()
        await instance.destroy()
        assert await said(await self._continued(driver), "cat /tmp/kept") == "kept\n"

    async def test_a_cancelled_boot_leaves_the_files_as_they_were(self, driver: Driver) -> None:
        await needs(driver, CapabilityName.PAUSE_CAPTURE)
        await self._left(driver)
        for wait_s in (0.0, 0.001, 0.005, 0.02):
            boot = asyncio.get_running_loop().create_task(self._continued(driver))
            await asyncio.sleep(wait_s)
            boot.cancel()
            with suppress(asyncio.CancelledError):
                await (await boot).destroy()  # it was faster than the cancellation
            assert list(await driver.live()) == []
        assert await said(await self._continued(driver), "cat /tmp/kept") == "kept\n"

    async def test_a_later_server_continues_and_its_sweep_keeps_the_files(self, driver: Driver) -> None:
        await needs(driver, CapabilityName.PAUSE_CAPTURE)
        await self._left(driver)
        later = await self._restarted(driver)
        await later.sweep(keep=[SandboxId("continued")])
        assert await said(await self._continued(later), "cat /tmp/kept") == "kept\n"

    async def test_what_an_earlier_server_left_running_is_halted_with_its_files_kept(self, driver: Driver) -> None:
        await needs(driver, CapabilityName.PAUSE_CAPTURE)
        instance = await driver.boot(self.boot_plan(SandboxId("continued")))
        await said(instance, "echo kept > /tmp/kept")
        later = await self._restarted(driver)
        assert await later.halt(SandboxId("continued"))
        assert list(await later.live()) == []
        assert await later.halt(SandboxId("continued"))
        assert not await later.halt(SandboxId("never"))
        assert await said(await self._continued(later), "cat /tmp/kept") == "kept\n"

    async def test_discarded_files_are_not_continued(self, driver: Driver) -> None:
        await needs(driver, CapabilityName.PAUSE_CAPTURE)
        await self._left(driver)
        await driver.discard(SandboxId("continued"))
        assert not await driver.halt(SandboxId("continued"))
        with pytest.raises((FirkinError, OSError)):
            await self._continued(driver)
        assert list(await driver.live()) == []

    async def test_an_instance_that_lives_is_not_booted_over(self, driver: Driver) -> None:
        await needs(driver, CapabilityName.PAUSE_CAPTURE)
        instance = await driver.boot(self.boot_plan(SandboxId("continued")))
        await said(instance, "echo kept > /tmp/kept")
        with pytest.raises((FirkinError, OSError)):
            await self._continued(driver)
        assert await said(instance, "cat /tmp/kept") == "kept\n"
