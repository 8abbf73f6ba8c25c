"""What lies in the store of layers and is of no use any more: layers, what was remembered, interrupted pulls."""

from __future__ import annotations

from collections.abc import Collection

from firkin.host.image_sources import PULLS
from firkin.host.layer_stacks import facts_of
from firkin.host.layer_store import LayerStore
from firkin.host.pulls import forget_pulls

_FACTS_KEPT_S = 90 * 86400.0


async def remove_unused(layers: LayerStore, in_use: Collection[str], *, unused_for_s: float) -> int:
    """Returns how many layers that were. What a preparation under way has found or made stays."""
    removed = await layers.collect(in_use, unused_for_s=unused_for_s)
    await forget_pulls(layers.directory / PULLS, before=layers.unused_since(unused_for_s))
    facts_of(layers).forget(before=layers.unused_since(max(unused_for_s, _FACTS_KEPT_S)))
    return removed
