"""Finding a driver by name and making one.

Drivers are entry points of the group ``firkin.drivers``; each is loaded only
when it is asked for. The convention that a driver class keeps:

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

from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from firkin.law.driver import Driver
from firkin.law.errors import BackendFailure, InvalidReason, InvalidSpec

GROUP = "firkin.drivers"


def driver_names() -> list[str]:
    """The names that `load_driver` accepts."""
    return sorted({entry.name for entry in entry_points(group=GROUP)})


def require_driver(name: str) -> None:
    """`InvalidSpec` for a name that `load_driver` does not accept."""
    _entry(name)


def load_driver_class(name: str) -> type:
    """The class of the driver of that name. Raises as `load_driver`."""
    return _load(_entry(name), name)


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


def _entry(name: str) -> EntryPoint:
    for entry in entry_points(group=GROUP):
        if entry.name == name:
            return entry
    known = ", ".join(driver_names())
    raise InvalidSpec(
        "load driver", InvalidReason.INVALID_SETTINGS, f"no driver is called {name!r}; installed are {known}"
    )


def _load(entry: EntryPoint, name: str) -> type:
    try:
        loaded: type = entry.load()
    except (ImportError, AttributeError) as error:
        raise BackendFailure("load driver", name, str(error)) from error
    return loaded
