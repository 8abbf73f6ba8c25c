"""How a server's driver is put together: alone or with tiers, and whose an option is."""

from __future__ import annotations

from pathlib import Path

import pytest

from firkin.bootstrap.tier_assembly import TIERS, build_driver, options_by_driver, volumes_folder
from firkin.drivers.memory import MemoryDriver
from firkin.drivers.tiers.driver import TiersDriver
from firkin.law.driver import TieredDriver
from firkin.law.errors import InvalidSpec
from firkin.law.isolation import STRENGTH, Isolation
from firkin.settings import Settings, read_settings


def settings(folder: Path, driver: str = "namespaces", **options: str) -> Settings:
    folder.mkdir(exist_ok=True)
    given = {name.replace("__", "."): value for name, value in options.items()}
    return read_settings({"driver": driver, "driver_options": given, "state_dir": folder})


def test_every_tier_has_a_driver_of_its_own() -> None:
    assert sorted(TIERS.values()) == sorted(STRENGTH)
    assert set(Isolation) - set(STRENGTH) == {Isolation.STRONGEST}


def test_options_belong_to_the_driver_before_the_dot_and_else_to_the_default() -> None:
    given = {"ready_slots": "3", "qemu.kernel": "/boot/k", "qemu.accelerator": "tcg", "namespaces.open_files": "64"}
    assert options_by_driver("namespaces", given) == {
        "namespaces": {"ready_slots": "3", "open_files": "64"},
        "qemu": {"kernel": "/boot/k", "accelerator": "tcg"},
    }


def test_an_option_for_a_driver_that_is_no_tier_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InvalidSpec, match=r"'quemu\.kernel' is for 'quemu'; .* gvisor, namespaces, oci, qemu"):
        build_driver(settings(tmp_path, quemu__kernel="/boot/k"))


def test_an_unknown_option_of_the_default_is_refused_at_once(tmp_path: Path) -> None:
    for options in ({"colour": "blue"}, {"namespaces__colour": "blue"}, {"ready_slots": "many"}):
        with pytest.raises(InvalidSpec):
            build_driver(settings(tmp_path, **options))


def test_a_driver_that_is_no_tier_stands_alone(tmp_path: Path) -> None:
    driver = build_driver(settings(tmp_path, "memory"))
    assert isinstance(driver, MemoryDriver)
    assert not isinstance(driver, TieredDriver)


async def test_the_namespaces_driver_has_the_other_tiers_beside_it_and_none_is_made_yet(tmp_path: Path) -> None:
    driver = build_driver(settings(tmp_path, ready_slots="3"))
    assert isinstance(driver, TiersDriver)
    assert driver.name == "namespaces"
    assert {name: driver.isolation_of(name) for name in TIERS} == dict(TIERS)
    assert sorted(path.name for path in (tmp_path / "drivers").iterdir()) == ["namespaces"]


def test_the_label_of_a_server_with_one_driver_stays_its_own(tmp_path: Path) -> None:
    """What lives on the machine is known by it."""
    old = tmp_path / "drivers" / "namespaces"
    old.mkdir(parents=True)
    (old / "label").write_text("0123abcd\n")
    build_driver(settings(tmp_path))
    assert (tmp_path / "ground" / "label").read_text() == "0123abcd\n"
    assert not (old / "label").exists()
    build_driver(settings(tmp_path))
    assert (tmp_path / "ground" / "label").read_text() == "0123abcd\n"


def test_an_option_that_another_tier_does_not_have_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(InvalidSpec, match="the qemu driver has no option 'nope'; it has kernel, "):
        build_driver(settings(tmp_path, qemu__nope="1"))


def test_volumes_stay_where_a_server_with_one_driver_had_them(tmp_path: Path) -> None:
    assert volumes_folder(tmp_path) == tmp_path / "volumes"
    old = tmp_path / "drivers" / "namespaces" / "volumes"
    old.mkdir(parents=True)
    assert volumes_folder(tmp_path) == old


def test_options_may_be_tables_of_a_configuration_file(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('[driver_options]\nready_slots = 3\nqemu.kernel = "/boot/k"\n')
    assert read_settings({"state_dir": tmp_path}).driver_options == {"ready_slots": "3", "qemu.kernel": "/boot/k"}
