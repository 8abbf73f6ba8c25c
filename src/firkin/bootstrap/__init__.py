"""The composition root: settings become a driver, an engine, and what is served.

The only place that knows which classes implement the seams. Nothing below it
may import it. Names are loaded on first use, so that a command which needs only
the state folder's files does not load an engine.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from firkin.bootstrap.composition import open_backend, open_runtime
    from firkin.bootstrap.serving import serve

__all__ = ["open_backend", "open_runtime", "serve"]

_HOMES = {
    "open_backend": "firkin.bootstrap.composition",
    "open_runtime": "firkin.bootstrap.composition",
    "serve": "firkin.bootstrap.serving",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
