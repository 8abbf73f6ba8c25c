"""Loop devices and mounts of volumes: one device an image, whoever bound it, and nothing left."""

from __future__ import annotations

import errno
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from firkin.drivers.boxes.host_checks import check
from firkin.drivers.ground.numbers import SLOTS, SlotNumbers
from firkin.host import volume_disks
from firkin.host.disks import add_loop_device, attach, loop_is_bound
from firkin.host.superblocks import has_met_errors
from firkin.host.volume_disks import FIRST_LOOP, mount_volume
from firkin.host.volume_images import format_volume

_READINESS = check(Path("/var/tmp"))
pytestmark = [
    pytest.mark.host,
    pytest.mark.skipif(not _READINESS.ready, reason="; ".join(_READINESS.reasons) or "ready"),
]
SIZE = 32 << 20


@pytest.fixture
async def image(tmp_path: Path) -> Path:
    path = tmp_path / "vtest.img"
    await format_volume(path, SIZE)
    return path


def loops(image: Path) -> list[str]:
    found = []
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            bound = path.read_text().strip() == str(image)
        except OSError:
            continue
        if bound:
            found.append(path.parts[3])
    return found


@contextmanager
def mounted(image: Path) -> Iterator[int]:
    root = mount_volume(str(image))
    try:
        yield root
    finally:
        os.close(root)


def unbound(image: Path) -> bool:
    until = time.monotonic() + 10
    while loops(image) and time.monotonic() < until:
        time.sleep(0.01)
    return not loops(image)


def test_its_devices_are_none_of_the_slots() -> None:
    assert SlotNumbers(SLOTS - 1).loop < FIRST_LOOP


async def test_a_fresh_volume_is_empty_and_the_default_users(image: Path) -> None:
    assert image.stat().st_blocks * 512 < 1 << 20, "it takes from the host what is written to it"
    checked = subprocess.run(["e2fsck", "-fn", str(image)], capture_output=True, text=True, check=False)  # noqa: ASYNC221
    assert checked.returncode == 0, checked.stdout
    with mounted(image) as root:
        inside = os.open(".", os.O_RDONLY, dir_fd=root)
        assert os.listdir(inside) == []
        found = os.fstat(inside)
        assert (found.st_uid, found.st_gid, found.st_mode & 0o7777) == (1000, 1000, 0o755)
        os.close(inside)
    assert unbound(image)


async def test_all_mounts_are_of_one_device_and_see_each_other(image: Path) -> None:
    with mounted(image) as one, mounted(image) as two:
        assert len(loops(image)) == 1
        os.close(os.open("x", os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=one))
        assert os.stat("x", dir_fd=two).st_size == 0
    assert unbound(image)


async def test_it_comes_and_goes_many_times(image: Path) -> None:
    """A mount that is just on its way out must not be met half-way."""
    for number in range(40):
        with mounted(image) as root:
            os.close(os.open(str(number), os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=root))
            assert len(loops(image)) == 1
    with mounted(image) as root:
        inside = os.open(".", os.O_RDONLY, dir_fd=root)
        assert len(os.listdir(inside)) == 40
        os.close(inside)
    assert unbound(image)


async def test_a_device_that_somebody_else_bound_is_used(image: Path) -> None:
    number = FIRST_LOOP + 3000
    add_loop_device(number)
    file = os.open(image, os.O_RDWR)
    held = attach(f"/dev/loop{number}", file)
    os.close(file)
    try:
        with mounted(image):
            assert loops(image) == [f"loop{number}"]
    finally:
        os.close(held)
    assert unbound(image)


async def test_a_device_that_is_read_only_is_an_error(image: Path) -> None:
    bound = subprocess.run(["losetup", "-r", "--show", "-f", str(image)], capture_output=True, text=True, check=True)  # noqa: ASYNC221
    device = bound.stdout.strip()
    try:
        with pytest.raises(OSError, match="read-only") as caught:
            mount_volume(str(image))
        assert caught.value.errno == errno.EBUSY
    finally:
        subprocess.run(["losetup", "-d", device], check=True)  # noqa: ASYNC221
    assert unbound(image)


async def test_an_image_of_the_same_name_elsewhere_is_another(image: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    twin = tmp_path / "other" / image.name
    await format_volume(twin, SIZE)
    with mounted(image), mounted(twin):
        assert len(loops(image)) == len(loops(twin)) == 1
        assert loops(image) != loops(twin)


async def test_whoever_takes_a_number_first_has_it(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another server may bind a device between our look and our attempt: then the next number is tried."""
    taken = tmp_path / "taken.img"
    await format_volume(taken, SIZE)
    numbers = iter(range(FIRST_LOOP + 3500, FIRST_LOOP + 3510))
    monkeypatch.setattr(volume_disks, "range", lambda *_: numbers, raising=False)
    monkeypatch.setattr(volume_disks, "loop_is_bound", lambda _: False)
    number = FIRST_LOOP + 3500
    add_loop_device(number)
    file = os.open(taken, os.O_RDWR)
    held = attach(f"/dev/loop{number}", file)
    os.close(file)
    try:
        with mounted(image):
            assert loops(image) == [f"loop{number + 1}"]
            assert loops(taken) == [f"loop{number}"]
    finally:
        os.close(held)
    assert unbound(image)
    assert not loop_is_bound(number)


async def test_many_volumes_at_once_get_devices_of_their_own(tmp_path: Path) -> None:
    images = [tmp_path / f"v{number}.img" for number in range(6)]
    for path in images:
        await format_volume(path, SIZE)
    roots: dict[Path, int] = {}
    threads = [threading.Thread(target=lambda p=path: roots.update({p: mount_volume(str(p))})) for path in images]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    try:
        devices = [loops(path) for path in images]
        assert [len(found) for found in devices] == [1] * 6
        assert len({found[0] for found in devices}) == 6
    finally:
        for root in roots.values():
            os.close(root)
    assert all(unbound(path) for path in images)


async def test_a_volume_that_the_kernel_found_damaged_is_mended_first(image: Path) -> None:
    subprocess.run(["debugfs", "-w", "-R", "ssv state 2", str(image)], capture_output=True, check=True)  # noqa: ASYNC221
    with image.open("rb") as file:
        assert has_met_errors(file.fileno())
    with mounted(image) as root:
        os.close(os.open("x", os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=root))
    assert unbound(image)
    with image.open("rb") as file:
        assert not has_met_errors(file.fileno())
