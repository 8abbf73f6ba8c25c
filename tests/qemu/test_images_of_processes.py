"""Machines whose process begins where another one stood: what they share, what holds them, and when there are none."""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from firkin.drivers.qemu.instance import QemuInstance
from firkin.drivers.qemu.stores import Store, read_store
from firkin.drivers.qemu.warm.held_threads import can_hold
from firkin.drivers.qemu.warm.process_images import require_walls
from firkin.drivers.qemu.warm.revival import BASE, LAST_OWN
from firkin.testing.driver_suite import begun, said
from tests.qemu.homes import Home
from tests.qemu.marks import real_machines
from tests.qemu.test_machines import World, counting

pytestmark = [
    *real_machines,
    pytest.mark.skipif(not can_hold(), reason="images of processes are for x86-64; elsewhere machines wake without"),
]

_COUNTED = "cat /dev/shm/now"
_LONG = 40.0


@pytest_asyncio.fixture
async def world(home: Home) -> AsyncIterator[World]:
    driver = home.driver()
    await driver.start()
    made = World(driver, home)
    try:
        yield made
    finally:
        await made.driver.sweep(())
        left = list(await made.driver.live())
        await made.driver.aclose()
    assert left == []
    assert not list((home.state / "warm").glob("*"))


def _is_pictured(instance: QemuInstance) -> bool:
    """It began as our own program, whose pages are where nothing else of a process is."""
    maps = Path(f"/proc/{instance.pid}/maps").read_text().splitlines()
    return any(int(line.split("-", 1)[0], 16) == BASE for line in maps)


async def _captured(world: World, source: QemuInstance, into: Path) -> tuple[Path, Store]:
    folder = await world.captured(source, into)
    return folder, read_store(folder)


async def _until(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + _LONG
    while not holds():
        assert time.monotonic() < until
        await asyncio.sleep(0.02)


async def test_clones_go_on_from_the_process_and_so_do_clones_of_clones(world: World, tmp_path: Path) -> None:
    source = await world.boot("source")
    drawn, before = await counting(source)
    for generation in range(6):  # more than an image has contents of others
        folder, store = await _captured(world, source, tmp_path / str(generation))
        assert world.driver._images.has(store)
        clone = await world.wake(f"clone{generation}", folder)
        assert _is_pictured(clone)
        same, count = (await said(clone, _COUNTED)).split()
        assert same == drawn
        assert int(count) > before
        assert (await said(clone, "hostname; echo 5 > /root/f; cat /root/f")).split() == [f"clone{generation}", "5"]
        await source.destroy()
        source, before = clone, int(count)


async def test_what_holds_qemu_holds_a_process_that_began_from_an_image(world: World, tmp_path: Path) -> None:
    source = await world.boot("source")
    folder, _ = await _captured(world, source, tmp_path / "c")
    clone = await world.wake("clone", folder)
    assert _is_pictured(clone)
    require_walls(clone.pid)
    for thread in os.listdir(f"/proc/{clone.pid}/task"):
        status = Path(f"/proc/{clone.pid}/task/{thread}/status").read_text()
        assert "Seccomp:\t2" in status
        assert f"Uid:\t{clone.slot.numbers.first_uid + 1000}\t" in status
    told, same = await clone.isolation(), await source.isolation()
    assert (told.capabilities, told.seccomp, told.no_new_privs) == (same.capabilities, same.seccomp, same.no_new_privs)
    assert told.limits == same.limits
    assert told.namespaces is not None
    assert all(told.namespaces[kind].is_own for kind in ("mnt", "net", "pid", "ipc", "uts"))
    with pytest.raises(PermissionError, match="Seccomp"):
        require_walls(os.getpid())


async def test_a_clone_has_descriptors_of_its_own_only(world: World, tmp_path: Path) -> None:
    source = await world.boot("source")
    folder, _ = await _captured(world, source, tmp_path / "c")
    clone = await world.wake("clone", folder)
    mine, others = _files(clone), _files(source)
    assert {mine[fd][0] for fd in mine.keys() - others.keys()} <= {"/dev/null"}  # what went to the store, there
    both = {fd: kind for fd, (kind, _) in mine.items() if fd in others and not kind.startswith("anon_")}
    shared = {fd: kind for fd, kind in both.items() if mine[fd][1] == others[fd][1]}
    images = {kind for kind in shared.values() if kind.endswith((".erofs", "/kernel", ".cpio"))}
    assert set(shared.values()) <= images | {"/dev/null", "/dev/urandom", "/dev/tun", shared.get(2, "")}, (
        "only what nobody can write to"
    )
    assert len(images) == 3
    assert f"{clone.sandbox_id}.img" in {Path(kind).name for kind, _ in mine.values()}
    assert f"{source.sandbox_id}.img" not in {Path(kind).name for kind, _ in mine.values()}


def _files(instance: QemuInstance) -> dict[int, tuple[str, int]]:
    folder = f"/proc/{instance.pid}/fd"
    return {int(fd): (os.readlink(f"{folder}/{fd}"), os.stat(f"{folder}/{fd}").st_ino) for fd in os.listdir(folder)}


async def test_nobody_can_change_what_clones_share_of_a_process(world: World, tmp_path: Path) -> None:
    source = await world.boot("source")
    _, store = await _captured(world, source, tmp_path / "c")
    warm = world.driver._images.lend(store)
    assert warm is not None
    try:
        for content in (*warm.image.contents, warm.image.program):
            with pytest.raises(PermissionError):
                os.pwrite(content, b"\xff", 0)
            assert fcntl.fcntl(content, fcntl.F_GET_SEALS) & fcntl.F_SEAL_WRITE
    finally:
        warm.image.close()


async def test_whoever_was_pictured_goes_on_and_is_held_by_nobody(world: World, tmp_path: Path) -> None:
    source = await world.boot("source")
    await counting(source)
    open_before = len(os.listdir(f"/proc/{source.pid}/fd"))
    for turn in range(3):
        _, store = await _captured(world, source, tmp_path / str(turn))
        assert world.driver._images.has(store)
        assert len(os.listdir(f"/proc/{source.pid}/fd")) == open_before
        for thread in os.listdir(f"/proc/{source.pid}/task"):
            assert "TracerPid:\t0" in Path(f"/proc/{source.pid}/task/{thread}/status").read_text()
        first = int((await said(source, _COUNTED)).split()[1])
        await _until_more(source, first)


async def _until_more(instance: QemuInstance, than: int) -> None:
    until = time.monotonic() + _LONG
    while int((await said(instance, _COUNTED)).split()[1]) <= than:
        assert time.monotonic() < until


async def test_an_image_that_is_of_no_use_costs_nobody_his_sandbox(world: World, tmp_path: Path) -> None:
    source = await world.boot("source")
    await counting(source)
    folder, store = await _captured(world, source, tmp_path / "c")
    kept = next(kept for kept in world.driver._images._kept.values() if kept.stand_in is None and not kept.used)
    broken = os.memfd_create("broken")
    os.pwrite(broken, os.pread(kept.image.program, 1 << 24, 0), 0)
    os.pwrite(broken, b"\xcc" * 4096, 0x1000)  # what it does first
    os.dup2(broken, kept.image.program)
    os.close(broken)
    clone = await world.wake("clone", folder)
    assert not _is_pictured(clone)
    assert (await said(clone, "hostname")).strip() == "clone"
    assert not world.driver._images.has(store)


async def test_no_process_begins_from_an_image_whose_libraries_were_replaced(world: World, tmp_path: Path) -> None:
    source = await world.boot("source")
    folder, store = await _captured(world, source, tmp_path / "c")
    for kept in world.driver._images._kept.values():
        library = next(iter(kept.image.files))
        mark = replace(kept.image.files[library], inode=1)
        kept.image = replace(kept.image, files={**kept.image.files, library: mark})
    assert not _is_pictured(await world.wake("clone", folder))
    assert not world.driver._images.has(store)


async def test_a_template_that_is_used_again_and_again_gets_an_image(world: World) -> None:
    store = (await world.driver._parts(world.plan("asks"))).store
    assert store is not None
    world.driver._images.drop(store)  # as after a restart of the server
    assert not _is_pictured(await world.boot("first"))
    assert not world.driver._images.has(store)
    await world.boot("second")
    await _until(lambda: world.driver._images.has(store))
    third = await world.boot("third")
    assert _is_pictured(third)
    assert (await said(third, "hostname")).strip() == "third"
    await _until(lambda: len(world.driver._instances) == 3)  # the one that was nobody's is gone
    world.driver._images.drop(store)  # as when nobody had use for it
    for name in ("fourth", "fifth"):
        await world.boot(name)
    await _until(lambda: world.driver._images.has(store))
    await _until(lambda: len(world.driver._instances) == 5)


async def test_a_snapshot_has_no_image_but_that_of_its_own_instant(world: World, tmp_path: Path) -> None:
    source = await world.boot("source")
    folder, store = await _captured(world, source, tmp_path / "c")
    world.driver._images.drop(store)
    for name in ("first", "second", "third"):
        assert not _is_pictured(await world.wake(name, folder))
    assert not world.driver._images.has(store)


async def test_a_copy_of_a_store_is_not_taken_for_the_store(world: World, tmp_path: Path) -> None:
    """What a machine had in its memory is its guest's choice, and no name for the process that stood there."""
    source = await world.boot("source")
    folder, store = await _captured(world, source, tmp_path / "c")
    shutil.copytree(folder, tmp_path / "copy")
    assert world.driver._images.has(store)
    assert not world.driver._images.has(read_store(tmp_path / "copy"))
    assert not _is_pictured(await world.wake("clone", tmp_path / "copy"))


async def test_machines_woken_ahead_give_their_templates_an_image(home: Home) -> None:
    first = home.driver(ready_machines="1", process_images="0")  # a server that had none
    await first.start()
    await first.aclose()
    driver = home.driver(ready_machines="1")
    await driver.start()
    try:
        world = World(driver, home)
        plan = replace(world.plan("asked"), repeats=True)
        store = (await driver._parts(plan)).store
        assert store is not None
        driver._images.drop(store)
        await driver.boot(plan)
        await _until(lambda: driver._images.has(store))
        assert _is_pictured(await driver.boot(replace(world.plan("next"), repeats=True)))
    finally:
        await driver.sweep(())
        await driver.aclose()
    assert not list((home.state / "warm").glob("*"))


async def test_without_images_programs_go_on_all_the_same(home: Home, tmp_path: Path) -> None:
    driver = home.driver(process_images="0")
    await driver.start()
    try:
        world = World(driver, home)
        source = await world.boot("source")
        drawn, _ = await counting(source)
        clone = await world.wake("clone", await world.captured(source, tmp_path / "c"))
        assert not _is_pictured(clone)
        assert (await said(clone, _COUNTED)).split()[0] == drawn
    finally:
        await driver.sweep(())
        await driver.aclose()


async def test_clones_draw_different_numbers_and_know_the_time(world: World, tmp_path: Path) -> None:
    source = await world.boot("source")
    folder, _ = await _captured(world, source, tmp_path / "c")
    await asyncio.sleep(1.2)  # so that a clock that stood still would show
    clones = await asyncio.gather(*(world.wake(f"c{number}", folder) for number in range(3)))
    drawn = [
        await said(clone, "cat /proc/sys/kernel/random/boot_id; od -N16 -An -tx1 /dev/urandom") for clone in clones
    ]
    assert len(set(drawn)) == len({text.split("\n")[0] for text in drawn}) == 3
    for clone in clones:
        assert abs(float(await said(clone, "date +%s.%N")) - time.time()) < 1


async def test_what_draws_random_numbers_inside_is_the_guests_or_the_hosts(world: World, tmp_path: Path) -> None:
    """QEMU has a generator of its own, in its memory, whose numbers would be the same in all that begin as copies."""
    source = await world.boot("source")
    flags = (await said(source, "cat /proc/cpuinfo")).split()
    assert "ssse3" in flags
    assert not {"rdrand", "rdseed"} & set(flags)
    assert any(os.readlink(link) == "/dev/urandom" for link in Path(f"/proc/{source.pid}/fd").iterdir())
    folder, _ = await _captured(world, source, tmp_path / "c")
    clones = [await world.wake(f"c{number}", folder) for number in range(2)]
    for clone in clones:
        assert _is_pictured(clone)
        assert any(os.readlink(link) == "/dev/urandom" for link in Path(f"/proc/{clone.pid}/fd").iterdir())
    drawn = [await said(clone, "od -N32 -An -tx1 /dev/hwrng 2>/dev/null || echo none") for clone in clones]
    assert drawn[0] != drawn[1] or drawn[0].strip() == "none"


async def test_a_process_that_began_from_an_image_does_not_grow_where_its_program_is(
    world: World, tmp_path: Path
) -> None:
    source = await world.boot("source")
    folder, _ = await _captured(world, source, tmp_path / "c")
    clone = await world.wake("clone", folder)
    there = [line.split() for line in Path(f"/proc/{clone.pid}/maps").read_text().splitlines()]
    spans = [(int(line[0].split("-")[0], 16), int(line[0].split("-")[1], 16), line[1]) for line in there]
    within = [span for span in spans if BASE <= span[0] < LAST_OWN]
    assert [access for _, _, access in within] == ["r-xp", "---p"]
    assert within[-1][1] == LAST_OWN
    assert not any("w" in access and "x" in access for start, _, access in within)


async def test_a_busy_machine_is_pictured_while_it_works(world: World, tmp_path: Path) -> None:
    """Two that compute, and one that writes: threads that are held anywhere, not in a call that waits."""
    source = await world.boot("source")
    for _ in range(2):
        await begun(source, "while :; do :; done")
    await begun(source, "while :; do dd if=/dev/zero of=/root/x bs=64k count=8 conv=fsync 2>/dev/null; done")
    for turn in range(4):
        folder, store = await _captured(world, source, tmp_path / str(turn))
        assert world.driver._images.has(store)
        clone = await world.wake(f"busy{turn}", folder)
        assert _is_pictured(clone)
        assert (await said(clone, "echo $((6 * 7))")).strip() == "42"
        await clone.destroy()
