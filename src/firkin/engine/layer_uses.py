"""Which layers are needed, and the removal of those that are not.

A layer is needed by every template, snapshot and sandbox whose files lie on it,
and by every preparation under way. One that nobody needs stays for a while:
whoever prepares the same again finds it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, TypeVar

from firkin.engine.clock import Clock
from firkin.host.layer_leftovers import remove_unused
from firkin.host.layer_store import LayerStore
from firkin.law.driver import RootFilesystem
from firkin.law.errors import FirkinError

if TYPE_CHECKING:
    from firkin.engine.node import Node

T = TypeVar("T")
_LONGEST_PAUSE_S = 3600.0
_log = logging.getLogger("firkin.engine")


class LayerKeeping:
    """What becomes of the layers of a node. `roots` says, at any time, whose files must stay."""

    def __init__(
        self, layers: LayerStore, *, clock: Clock, kept_s: float, roots: Callable[[], Iterator[RootFilesystem]]
    ) -> None:
        self._layers = layers
        self._clock = clock
        self._kept_s = kept_s
        self._roots = roots

    async def run(self) -> None:
        """Remove, at once and then again and again, what nobody has needed for long."""
        while True:
            try:
                await self._remove(self._kept_s)
            except (FirkinError, OSError) as error:
                _log.error("unused layers not removed error=%s", error)
            await self._clock.sleep_until(self._clock.monotonic() + min(self._kept_s, _LONGEST_PAUSE_S))

    async def prune(self) -> int:
        """Remove now what nobody needs now. Returns how many layers that were."""
        return await self._remove(0.0)

    async def during(self, preparation: Coroutine[Any, Any, T]) -> T:
        """A preparation, from whose beginning on nothing is removed that it finds or makes."""
        with self._layers.preparing():
            return await preparation

    def holding(self, root: RootFilesystem) -> AbstractContextManager[None]:
        """Its layers stay for the length of a block."""
        keys = (self._layers.key_of(path) for path in (root.base, *root.layers))
        return self._layers.holding([key for key in keys if key is not None])

    async def settle(self) -> None:
        """Make durable what was prepared."""
        try:
            await self._layers.settle()
        except FirkinError as error:
            _log.error("layers are not durable yet error=%s", error)

    async def _remove(self, unused_for_s: float) -> int:
        paths = {path for root in self._roots() for path in (root.base, *root.layers)}
        return await remove_unused(self._layers, paths, unused_for_s=unused_for_s)


def roots_in_use(node: Node) -> Iterator[RootFilesystem]:
    """Every root that a template, a snapshot or a sandbox has; without a pause, so that none slips through."""
    roots = [record.root for record in node.templates.records()]
    roots += [record.origin.root for record in node.snapshots.all()]
    roots += [resident.origin.root for resident in node.roster]
    return (root for root in roots if root is not None)
