"""A server's driver: one alone, or the tiers that stand on the server's ground, with the chosen one as the default.

The tiers are Firkin's own drivers. Any other driver stands alone, as does one of
theirs that cannot share a ground. Options of a tier carry its driver's name,
``qemu.kernel=PATH``; those without one are the default driver's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any  # Any: an entry point is untyped by nature

from firkin.bootstrap.driver_loading import load_driver, load_driver_class
from firkin.bootstrap.state_files import make_state_dir
from firkin.law.driver import Driver
from firkin.law.errors import InvalidReason, InvalidSpec
from firkin.law.isolation import Isolation
from firkin.settings import Settings

if TYPE_CHECKING:
    from firkin.drivers.ground.ground import Ground
    from firkin.drivers.tiers.tier import TierPlan

TIERS: Mapping[str, Isolation] = {
    "qemu": Isolation.MICROVM,
    "gvisor": Isolation.GVISOR,
    "namespaces": Isolation.NAMESPACES,
    "oci": Isolation.OCI,
}
GROUND_OPTIONS = ("ready_slots", "egress_trust")
"""Those of the ground: the default driver's or ``namespaces.``, wherever they stand."""
_LOAD = "load driver"


def build_driver(settings: Settings) -> Driver:
    """The driver of these settings, with every tier beside it that could share its ground. Not started."""
    folder = settings.state_dir / "drivers" / settings.driver
    for made in (folder.parent, folder):
        make_state_dir(made)
    grounded = settings.driver in TIERS and hasattr(load_driver_class(settings.driver), "on_ground")
    if not grounded:
        return load_driver(settings.driver, folder, settings.driver_options)
    from firkin.drivers.boxes.volumes import VolumeDisks
    from firkin.drivers.tiers.driver import TiersDriver  # a driver alone does without

    options = options_by_driver(settings.driver, settings.driver_options)
    ground = _ground(settings.state_dir, _of_ground(settings.driver, options))
    plans = {name: _plan(name, settings.state_dir / "drivers", ground, options.get(name, {})) for name in TIERS}
    default = plans.pop(settings.driver)
    for plan in plans.values():
        if options.get(plan.driver):
            plan.load()()  # what is misspelt must not be found when the first sandbox asks for that tier
    volumes = VolumeDisks(volumes_folder(settings.state_dir))
    return TiersDriver(default, default.load()(), list(plans.values()), volumes=volumes)


def options_by_driver(default: str, options: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """By the driver that they are for. `InvalidSpec` for a prefix that is no driver's."""
    found: dict[str, dict[str, str]] = {}
    for name, value in options.items():
        prefix, dot, rest = name.rpartition(".")
        if dot and prefix not in TIERS:
            known = ", ".join(sorted(TIERS))
            raise _invalid(f"option {name!r} is for {prefix!r}; options can be for {known}")
        found.setdefault(prefix or default, {})[rest] = value
    return found


def _of_ground(default: str, options: dict[str, dict[str, str]]) -> dict[str, str]:
    """Take the ground's options out; the default driver's own word counts before that of ``namespaces``."""
    taken: dict[str, str] = {}
    for driver in ("namespaces", default):
        own = options.get(driver, {})
        taken.update({name: own.pop(name) for name in GROUND_OPTIONS if name in own})
    return taken


def _ground(state_dir: Path, given: Mapping[str, str]) -> Ground:
    from firkin.drivers.boxes.options import BoxOptions
    from firkin.drivers.ground.ground import Ground

    options = BoxOptions.parse(given, "namespaces")
    folder = state_dir / "ground"
    make_state_dir(folder)
    _move_label(state_dir / "drivers" / "namespaces" / "label", folder / "label")
    return Ground(folder, ready_slots=options.ready_slots, egress_trust=options.egress_trust)


def volumes_folder(state_dir: Path) -> Path:
    """The server's, whichever tier is its default. An earlier Firkin had them with its only driver: there they stay,
    for what is mounted is known by its path."""
    old = state_dir / "drivers" / "namespaces" / "volumes"
    return old if old.exists() else state_dir / "volumes"


def _move_label(old: Path, new: Path) -> None:
    """An earlier Firkin kept it with its only driver; what lives on the machine is known by it."""
    if not new.exists() and old.exists():
        old.rename(new)


def _plan(name: str, drivers: Path, ground: Ground, options: Mapping[str, str]) -> TierPlan:
    from firkin.drivers.tiers.tier import TierPlan

    return TierPlan(
        isolation=TIERS[name],
        driver=name,
        folder=drivers / name,
        load=partial(_maker, name, ground, drivers / name, options),
        lives=partial(ground.lives, name),
    )


def _maker(name: str, ground: Ground, folder: Path, options: Mapping[str, str]) -> Callable[[], Driver]:
    """Loads the driver's code. Blocks."""
    driver_class: Any = load_driver_class(name)
    if getattr(driver_class, "isolation", None) != TIERS[name] or not hasattr(driver_class, "on_ground"):
        raise _invalid(f"the driver installed as {name!r} cannot be one of several tiers")
    return partial(driver_class.on_ground, ground, folder, dict(options))


def _invalid(detail: str) -> InvalidSpec:
    return InvalidSpec(_LOAD, InvalidReason.INVALID_SETTINGS, detail)
