"""Finding a driver by name and making one.

Firkin's own are listed here; others are entry points of the group
``firkin.drivers``, which are not looked for as long as nobody names one. Each is
loaded only when it is asked for. The convention that a driver class keeps:

    @classmethod
    def from_settings(cls, state_dir: Path, options: Mapping[str, str]) -> Self

`state_dir` is the folder that belongs to it alone; everything that the driver
leaves on the machine must carry a label made from it, so that two servers with
two state folders never touch each other's sandboxes. Unknown options are
refused by `InvalidSpec`. A driver that can be one of a server's tiers also has

    isolation: str
    @classmethod
    def on_ground(cls, ground: Ground, state_dir: Path, options: Mapping[str, str]) -> Self

`isolation` is the name of its tier. `ground` is what the drivers of one server share; its
control groups there are `ground.trees(NAME)`, by its own name (`namespaces` has the bare ones);
making the driver makes nothing on the machine, nor `state_dir`, which is there by the
time of its `start`. One that can mount the server's volumes `SharesVolumes`. `preflight`
and `capabilities` may be asked before `start`, which leaves nothing when it fails.

Three methods are optional: `root_preparer()` returns the `RootPreparer` of a driver whose
roots are not directories of the host, `doctor()` returns findings for ``firkin doctor``,
and the class method `declared()` returns the `Capabilities` on a machine that lacks nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TypeAlias

from firkin.law.driver import Driver
from firkin.law.errors import BackendFailure, InvalidReason, InvalidSpec

GROUP = "firkin.drivers"
_OWN = {
    "gvisor": ("firkin.drivers.gvisor.driver", "GvisorDriver"),
    "memory": ("firkin.drivers.memory", "MemoryDriver"),
    "namespaces": ("firkin.drivers.namespaces.driver", "NamespacesDriver"),
    "oci": ("firkin.drivers.oci.driver", "OciDriver"),
    "qemu": ("firkin.drivers.qemu.driver", "QemuDriver"),
}

Load: TypeAlias = Callable[[], type]


def driver_names() -> list[str]:
    """The names that `load_driver` accepts."""
    return sorted({*_OWN, *_others()})


def require_driver(name: str) -> None:
    """`InvalidSpec` for a name that `load_driver` does not accept."""
    _load_of(name)


def load_driver_class(name: str) -> type:
    """The class of the driver of that name. Raises as `load_driver`."""
    try:
        return _load_of(name)()
    except (ImportError, AttributeError) as error:
        raise BackendFailure("load driver", name, str(error)) from error


def load_driver(name: str, state_dir: Path, options: Mapping[str, str]) -> Driver:
    """The driver of that name. `InvalidSpec` for an unknown name, `BackendFailure` when its code cannot be loaded."""
    driver_class = load_driver_class(name)
    make = getattr(driver_class, "from_settings", None)
    if make is not None:
        made: Driver = make(state_dir, options)
        return made
    if options:
        raise InvalidSpec(
            "load driver", InvalidReason.INVALID_SETTINGS, f"driver {name!r} takes no options; got {', '.join(options)}"
        )
    return driver_class()  # type: ignore[no-any-return]  # an entry point is untyped by nature


def _load_of(name: str) -> Load:
    if name in _OWN:
        return partial(_own, *_OWN[name])
    load = _others().get(name)
    if load is None:
        known = ", ".join(driver_names())
        raise InvalidSpec(
            "load driver", InvalidReason.INVALID_SETTINGS, f"no driver is called {name!r}; installed are {known}"
        )
    return load


def _own(module: str, name: str) -> type:
    found: type = getattr(import_module(module), name)
    return found


def _others() -> dict[str, Load]:
    from importlib.metadata import entry_points  # a tenth of what a server's start imports

    return {entry.name: entry.load for entry in entry_points(group=GROUP)}
