"""Which accelerator machines run with, and what is said where it cannot be the one that was wanted."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from firkin.drivers.qemu import accelerators
from firkin.drivers.qemu.accelerators import Accelerators
from firkin.law.errors import BackendFailure

pytestmark = pytest.mark.asyncio


class Host:
    """Where machines boot under KVM, or do not."""

    def __init__(self, works: bool) -> None:
        self.works = works
        self.tried: list[str] = []

    async def boots(self, accelerator: str) -> bool:
        self.tried.append(accelerator)
        return self.works


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Has the host a device for KVM; without the call it has none."""
    path = tmp_path / "kvm"
    monkeypatch.setattr(accelerators, "_DEVICE", str(path))
    return path.touch


async def test_kvm_is_taken_where_a_machine_was_seen_to_boot_with_it(
    tmp_path: Path, device: Callable[[], None]
) -> None:
    device()
    for wish in ("auto", "kvm"):
        host = Host(works=True)
        folder = tmp_path / f"of-{wish}"
        assert [await Accelerators(folder, wish).choose(host.boots) for _ in range(2)] == ["kvm", "kvm"]
        assert host.tried == ["kvm"]  # the second remembers the first


async def test_who_leaves_the_choice_gets_an_emulation_where_kvm_fails(
    tmp_path: Path, device: Callable[[], None]
) -> None:
    device()
    host = Host(works=False)
    assert [await Accelerators(tmp_path, "auto").choose(host.boots) for _ in range(2)] == ["tcg", "tcg"]
    assert host.tried == ["kvm"]


async def test_who_wants_kvm_alone_is_refused_by_name_where_it_fails(
    tmp_path: Path, device: Callable[[], None]
) -> None:
    device()
    host = Host(works=False)
    wanted = Accelerators(tmp_path, "kvm")
    for _ in range(2):
        with pytest.raises(BackendFailure, match=r"qemu\.accelerator is 'kvm'"):
            await wanted.choose(host.boots)
    assert host.tried == ["kvm"]
    host.works = True  # mended, and the server started anew: what failed once is no reason to refuse
    assert await Accelerators(tmp_path, "kvm").choose(host.boots) == "kvm"


async def test_without_the_device_nothing_is_tried(tmp_path: Path, device: Callable[[], None]) -> None:
    host = Host(works=True)
    assert not os.path.exists(accelerators._DEVICE)
    assert await Accelerators(tmp_path, "auto").choose(host.boots) == "tcg"
    with pytest.raises(BackendFailure, match=r"qemu\.accelerator is 'kvm'"):
        await Accelerators(tmp_path, "kvm").choose(host.boots)
    assert host.tried == []


async def test_who_wants_an_emulation_gets_one_without_a_try(tmp_path: Path, device: Callable[[], None]) -> None:
    device()
    host = Host(works=True)
    assert await Accelerators(tmp_path, "tcg").choose(host.boots) == "tcg"
    assert host.tried == []
