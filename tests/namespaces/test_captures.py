"""Disks: captured at one instant, in order, booted from, and continued."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from firkin.drivers.boxes.captures import IMAGE
from firkin.drivers.boxes.launcher import LaunchFailed
from firkin.host.superblocks import is_clean
from firkin.law.driver import RootFilesystem
from firkin.law.errors import InvalidReason, InvalidSpec, IoFailure, SandboxUnavailable
from firkin.law.resources import GIB
from firkin.testing.driver_suite import becomes, begun, said
from tests.namespaces.alone import Alone, driver_alone

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def alone(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Alone]:
    async with driver_alone(tmp_path_factory.mktemp("captures")) as started:
        yield started


def clean(image: Path) -> bool:
    with image.open("rb") as file:
        return is_clean(file.fileno())


def checked(image: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["e2fsck", "-fn", image], capture_output=True, text=True, timeout=30, check=False)


def described(image: Path) -> str:
    return subprocess.run(["dumpe2fs", "-h", image], capture_output=True, text=True, timeout=30, check=True).stdout


def edited(image: Path, edits: str) -> None:
    command = ["debugfs", "-w", "-f", "-", str(image)]
    subprocess.run(command, input=edits, text=True, timeout=30, check=True, capture_output=True)


BUSY = """
exec 9> /root/deleted; echo kept open >&9; rm /root/deleted
while true; do
    mkdir -p /root/d/$((i % 7)); head -c $((RANDOM * 9)) /dev/urandom > /root/d/$((i % 7))/$((i % 31))
    ln -sf target /root/d/link$((i % 5)); rm -rf /root/d/$(((i + 3) % 7)); i=$((i + 1)); echo $i >> /root/i
done
"""


async def test_the_disk_of_a_busy_sandbox_is_captured_in_order(alone: Alone) -> None:
    source = await alone.boot("busy")
    await begun(source, f"exec bash -c '{BUSY}'")
    await becomes(source, "[ -s /root/i ]; echo $?", "0\n")
    for number in range(3):
        into = alone.folder(f"busy{number}")
        await source.capture(into, room_bytes=1 << 40)
        outcome = checked(into / IMAGE)
        assert outcome.returncode == 0 or _only_what_was_deleted_open(outcome.stdout), outcome.stdout
        twin = await alone.fork(f"busytwin{number}", into)
        assert int(await said(twin, "tail -n 1 /root/i; rm -rf /root/d; sync"))
        await twin.destroy()
    await source.destroy()


def _only_what_was_deleted_open(text: str) -> bool:
    """An inode without a name, its blocks and the sums that it is left out of: harmless, and reused by a repair."""
    complaints = [line for line in text.splitlines() if line and not line.startswith(("Pass", "Fix?", "Clear?"))]
    known = ("deleted inode", "zero dtime", "count wrong", "differences", "Inode", "WARNING", "files (")
    return all(any(word in line for word in known) for line in complaints)


async def test_what_was_just_written_is_in_the_capture(alone: Alone) -> None:
    source = await alone.boot("written")
    digest = await said(source, "head -c 50000000 /dev/urandom > /root/big; sha256sum < /root/big")
    into = alone.folder("written.d")
    await source.capture(into, room_bytes=1 << 40)
    assert (into / IMAGE).stat().st_blocks * 512 < 70_000_000
    twin = await alone.fork("writtentwin", into)
    assert await said(twin, "sha256sum < /root/big") == digest
    await twin.destroy()
    await source.destroy()


async def test_a_copy_is_called_clean_and_a_checker_agrees(alone: Alone) -> None:
    source = await alone.boot("called")
    into = alone.folder("called.d")
    await source.capture(into, room_bytes=1 << 40)
    assert clean(into / IMAGE)
    assert not clean(alone.disk("called"))
    assert "Filesystem state:         clean" in described(into / IMAGE)
    assert checked(into / IMAGE).returncode == 0
    twin = await alone.fork("calledtwin", into)
    await twin.destroy()
    assert clean(alone.disk("calledtwin"))
    await source.destroy()


async def test_a_disk_of_another_size_is_refused(alone: Alone) -> None:
    source = await alone.boot("sized")
    into = alone.folder("sized.d")
    await source.capture(into, room_bytes=1 << 40)
    await source.destroy()
    wanted = replace(alone.plan("sized").resources, disk_bytes=GIB)
    for plan in (replace(alone.plan("other"), captured=str(into)), replace(alone.plan("sized"), continues=True)):
        with pytest.raises(InvalidSpec) as refused:
            await alone.driver.boot(replace(plan, resources=wanted))
        assert refused.value.reason is InvalidReason.INVALID_RESOURCES
    assert alone.disk("sized").exists()
    assert not alone.disk("other").exists()


async def test_a_failed_boot_does_not_remove_the_files_that_it_was_to_continue_with(alone: Alone) -> None:
    first = await alone.boot("failed")
    await said(first, "echo precious > /root/file")
    await first.destroy()
    broken = RootFilesystem(base=alone.root.base, shared={"/not/there": "/usr"})
    with pytest.raises((LaunchFailed, OSError)):
        await alone.driver.boot(replace(alone.plan("failed"), root=broken, continues=True))
    again = await alone.driver.boot(replace(alone.plan("failed"), continues=True))
    assert await said(again, "cat /root/file") == "precious\n"
    await again.destroy()


async def test_a_disk_that_was_not_unmounted_is_repaired_before_it_is_continued(alone: Alone) -> None:
    first = await alone.boot("crashed")
    await said(first, "echo precious > /root/file; sync")
    aside = alone.state / "crashed.img"
    shutil.copy(alone.disk("crashed"), aside)  # as a crash of the host would leave it
    await first.destroy()
    shutil.copy(aside, alone.disk("crashed"))
    assert not clean(alone.disk("crashed"))
    again = await alone.driver.boot(replace(alone.plan("crashed"), continues=True))
    assert await said(again, "cat /root/file") == "precious\n"
    await again.destroy()
    assert clean(alone.disk("crashed"))


async def test_a_capture_into_a_used_directory_says_what_is_wrong(alone: Alone) -> None:
    source = await alone.boot("used")
    into = alone.folder("used.d")
    (into / IMAGE).write_text("somebody's")
    with pytest.raises(IoFailure, match="used"):
        await source.capture(into, room_bytes=1 << 40)
    assert (into / IMAGE).read_text() == "somebody's"
    assert await said(source, "echo well") == "well\n"
    await source.destroy()


async def test_killed_during_a_capture(alone: Alone) -> None:
    source = await alone.boot("killed")
    await said(source, "head -c 100000000 /dev/urandom > /root/big")
    capturing = asyncio.gather(source.capture(alone.folder("killed.d"), room_bytes=1 << 40), return_exceptions=True)
    while not (alone.state / "killed.d" / IMAGE).exists():  # noqa: ASYNC110 — another thread makes it
        await asyncio.sleep(0)
    await source.destroy()
    assert isinstance((await capturing)[0], SandboxUnavailable)
    assert not await alone.driver.live()


async def test_a_freeze_during_a_capture_holds_after_it(alone: Alone) -> None:
    source = await alone.boot("both")
    await said(source, "head -c 50000000 /dev/urandom > /root/big")
    await asyncio.gather(source.capture(alone.folder("both.d"), room_bytes=1 << 40), source.freeze())
    assert source._freezer.frozen
    await asyncio.gather(source.capture(alone.folder("both.e"), room_bytes=1 << 40), source.thaw())
    assert not source._freezer.frozen
    assert await said(source, "echo well") == "well\n"
    await source.destroy()


async def test_many_captures_at_once(alone: Alone) -> None:
    source = await alone.boot("many")
    folders = [alone.folder(f"many{number}") for number in range(8)]
    await asyncio.gather(*(source.capture(into, room_bytes=1 << 40) for into in folders))
    assert all(clean(into / IMAGE) for into in folders)
    assert await said(source, "echo well") == "well\n"
    await source.destroy()


@pytest.mark.skipif(shutil.which("debugfs") is None, reason="debugfs is not installed")
@pytest.mark.parametrize("name", ["u", "w"])
async def test_a_disk_whose_layer_is_a_link_is_refused(alone: Alone, name: str) -> None:
    source = await alone.boot(f"link{name}")
    into = alone.folder(f"link{name}.d")
    await source.capture(into, room_bytes=1 << 40)
    await source.destroy()
    edited(into / IMAGE, f"cd /\nln {name} old\nunlink {name}\nsymlink {name} /empty\n")
    with pytest.raises(LaunchFailed) as refused:
        await alone.fork(f"linked{name}", into)
    assert refused.value.step == "overlay"
    assert not alone.disk(f"linked{name}").exists()
