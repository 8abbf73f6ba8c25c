"""The driver of several tiers: everything goes where it belongs, and no tier costs anything before it is asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from firkin.drivers.tiers import tier as tiers_of
from firkin.drivers.tiers.driver import TiersDriver
from firkin.law.driver import BootPlan, InstanceRef, RootFilesystem, TieredDriver
from firkin.law.errors import BackendFailure, InvalidSpec, UnsupportedCapability
from firkin.law.ids import SandboxId
from firkin.law.isolation import Isolation
from firkin.law.resources import SandboxResources
from tests.volumes_in_folders import FolderVolumes

from .worlds import Sharing, World

PLAN = BootPlan(sandbox_id=SandboxId("box"), root=RootFilesystem(base="/nonexistent"), resources=SandboxResources())


def plan(name: str, isolation: str = "") -> BootPlan:
    return replace(PLAN, sandbox_id=SandboxId(name), isolation=isolation)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_it_is_a_tiered_driver(world: World) -> None:
    assert isinstance(world.driver(), TieredDriver)
    assert not isinstance(world.drivers["qemu"], TieredDriver)


async def test_a_boot_goes_where_the_plan_says(world: World) -> None:
    driver = world.driver()
    await driver.start()
    booted = [await driver.boot(plan(name, tier)) for name, tier in (("a", ""), ("b", "gvisor"), ("c", "microvm"))]
    assert [instance.ref.driver for instance in booted] == ["namespaces", "gvisor", "qemu"]
    assert sorted(await driver.live()) == ["a", "b", "c"]
    await driver.aclose()


async def test_an_unknown_tier_is_refused_and_nothing_is_booted(world: World) -> None:
    driver = world.driver()
    await driver.start()
    for unknown in ("oci", "strongest", "hard"):
        with pytest.raises((InvalidSpec, UnsupportedCapability)):
            await driver.boot(plan("a", unknown))
    assert await world.held() == []
    await driver.aclose()


async def test_a_start_loads_and_looks_at_the_default_alone(world: World) -> None:
    driver = world.driver()
    await driver.start()
    assert (world.loaded, world.drivers["gvisor"].looks, world.drivers["gvisor"].starts) == ([], 0, 0)
    await driver.boot(plan("a", "gvisor"))
    await driver.boot(plan("b", "gvisor"))
    assert world.loaded == ["gvisor"]
    assert (world.drivers["gvisor"].looks, world.drivers["gvisor"].starts) == (1, 1)
    await driver.aclose()


async def test_a_later_server_starts_what_an_earlier_one_used_and_adopts_by_the_driver(world: World) -> None:
    first = world.driver()
    await first.start()
    left = await first.boot(plan("a", "gvisor"))
    await first.aclose()
    second = world.driver("qemu")
    await second.start()
    assert sorted(world.loaded) == ["gvisor", "namespaces"]
    found = await second.adopt(SandboxId("a"), left.ref)
    assert found is not None
    assert found.ref == left.ref
    assert await second.adopt(SandboxId("a"), replace(left.ref, driver="qemu")) is None
    assert await second.adopt(SandboxId("a"), InstanceRef("elsewhere", {})) is None
    await second.aclose()


async def test_a_sweep_reaches_every_tier_and_keeps_what_is_kept(world: World) -> None:
    driver = world.driver()
    await driver.start()
    for name, tier in (("keep", "gvisor"), ("go", "gvisor"), ("went", "")):
        await driver.boot(plan(name, tier))
    removed = await driver.sweep([SandboxId("keep")])
    assert sorted(removed) == ["gvisor: instance go", "namespaces: instance went"]
    assert await world.held() == ["gvisor: keep"]
    await driver.aclose()


async def test_halt_and_discard_find_the_tier_that_has_the_files(world: World) -> None:
    first = world.driver()
    await first.start()
    await first.boot(plan("a", "gvisor"))
    await first.aclose()
    second = world.driver()
    await second.start()
    assert await second.halt(SandboxId("a"))
    assert not await second.halt(SandboxId("never"))
    assert list(await second.live()) == []
    await second.discard(SandboxId("a"))
    assert await world.held() == []
    await second.aclose()


async def test_what_a_destroyed_one_changed_is_committed_by_its_tier(world: World, tmp_path: Path) -> None:
    driver = world.driver()
    await driver.start()
    instance = await driver.boot(plan("a", "gvisor"))
    await instance.destroy()
    into = tmp_path / "layer"
    into.mkdir()
    await driver.commit(SandboxId("a"), into)
    assert list(into.iterdir())
    await driver.discard(SandboxId("a"))
    assert await world.held() == []
    await driver.aclose()


async def test_every_tier_is_listed_with_what_it_lacks_the_default_first(world: World) -> None:
    world.drivers["qemu"].lacks = ("There is no /dev/kvm; load kvm_intel.",)
    listed = await world.driver("gvisor").tiers()
    assert [(each.isolation, each.is_default, each.preflight.ready) for each in listed] == [
        (Isolation.GVISOR, True, True),
        (Isolation.MICROVM, False, False),
        (Isolation.NAMESPACES, False, True),
    ]
    assert listed[1].preflight.reasons == world.drivers["qemu"].lacks


async def test_the_strongest_is_the_strongest_that_is_ready(world: World) -> None:
    assert (await world.driver().tier(Isolation.STRONGEST)).isolation is Isolation.MICROVM
    world.drivers["qemu"].lacks = ("no",)
    assert (await world.driver().tier(Isolation.STRONGEST)).isolation is Isolation.GVISOR
    world.drivers["gvisor"].lacks = ("no",)
    assert (await world.driver().tier(Isolation.STRONGEST)).isolation is Isolation.NAMESPACES


async def test_a_tier_that_is_not_ready_does_not_boot_and_says_why(world: World) -> None:
    world.drivers["qemu"].lacks = ("There is no /dev/kvm; load kvm_intel.",)
    driver = world.driver()
    await driver.start()
    with pytest.raises(BackendFailure, match=r"microvm.*There is no /dev/kvm; load kvm_intel"):
        await driver.boot(plan("a", "microvm"))
    assert world.drivers["qemu"].starts == 0
    assert not (world.folder / "drivers" / "qemu").exists()
    await driver.aclose()


async def test_a_machine_that_was_mended_is_looked_at_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.drivers["qemu"].lacks = ("no",)
    driver = world.driver()
    assert not (await driver.tier(Isolation.MICROVM)).preflight.ready
    world.drivers["qemu"].lacks = ()
    assert not (await driver.tier(Isolation.MICROVM)).preflight.ready  # not so soon: a look takes its time
    monkeypatch.setattr(tiers_of, "RELOOK_AFTER_S", -1.0)
    assert (await driver.tier(Isolation.MICROVM)).preflight.ready
    assert (await driver.tier(Isolation.MICROVM)).preflight.ready
    assert world.drivers["qemu"].looks == 2


async def test_code_that_cannot_be_loaded_is_a_reason(world: World) -> None:
    def load() -> tiers_of.Make:
        raise BackendFailure("load driver", "oci", "this installation has no driver 'oci'")

    absent = tiers_of.TierPlan(isolation=Isolation.OCI, driver="oci", folder=world.folder / "oci", load=load)
    default = world._plan("namespaces")
    status = await TiersDriver(default, world.drivers["namespaces"], [absent]).tier(Isolation.OCI)
    assert not status.preflight.ready
    assert "no driver 'oci'" in status.preflight.reasons[0]
    assert not any(reason is None for _, reason in status.capabilities)


async def test_a_used_tier_that_cannot_be_started_stops_the_server_only_while_its_sandboxes_live(world: World) -> None:
    first = world.driver()
    await first.start()
    left = await first.boot(plan("a", "gvisor"))
    await first.aclose()
    world.drivers["gvisor"].breaks = "runsc is gone"
    world.living.add("gvisor")
    with pytest.raises(BackendFailure, match=r"its sandboxes live.*runsc is gone"):
        await world.driver().start()
    world.living.clear()
    second = world.driver()
    await second.start()
    with pytest.raises(BackendFailure, match="runsc is gone"):
        await second.adopt(SandboxId("a"), left.ref)
    with pytest.raises(BackendFailure, match="may be its own"):
        await second.halt(SandboxId("a"))
    await second.aclose()


def test_two_tiers_of_one_kind_are_refused(world: World) -> None:
    with pytest.raises(ValueError, match="same isolation"):
        TiersDriver(world._plan("qemu"), world.drivers["qemu"], [world._plan("qemu")])


async def test_a_tier_mounts_the_volumes_of_the_default_or_none(world: World, tmp_path: Path) -> None:
    """Its own would be others, under the same names."""
    for name in ("namespaces", "qemu"):
        (tmp_path / f"{name}-volumes").mkdir()
        world.drivers[name].keeper = FolderVolumes(tmp_path / f"{name}-volumes")
    world.drivers["gvisor"] = Sharing("gvisor")
    driver = world.driver()
    assert driver.volumes is world.drivers["namespaces"].keeper
    listed = {each.driver: each.mounts_volumes for each in await driver.tiers()}
    assert listed == {"namespaces": True, "gvisor": True, "qemu": False}
    assert world.drivers["gvisor"].keeper is driver.volumes


async def test_the_servers_own_volumes_are_all_tiers_and_the_default_is_asked_too(world: World, tmp_path: Path) -> None:
    own = OwnFolder(tmp_path)
    world.drivers["namespaces"] = Sharing("namespaces")
    plans = [world._plan(name) for name in ("namespaces", "qemu")]
    driver = TiersDriver(plans[0], world.drivers["namespaces"], plans[1:], volumes=own)
    assert driver.volumes is world.drivers["namespaces"].keeper is own
    assert [each.mounts_volumes for each in await driver.tiers()] == [True, False]
    await driver.start()
    await driver.aclose()
    assert own.told == ["start", "aclose"]


class OwnFolder(FolderVolumes):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.told: list[str] = []

    async def start(self) -> None:
        self.told.append("start")

    async def aclose(self) -> None:
        self.told.append("aclose")
