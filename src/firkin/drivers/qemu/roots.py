"""Which root image a machine has, and how long images stay.

A new machine has its template's. One that goes on has the image that it was
written down on, whatever has become of its template since: what is in its memory
was read from there. Images, and machines stored to be woken, that nothing needs
any more are removed; what needs them is told by the manifests of stores.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path

from firkin.drivers.qemu.seeds import Seeds
from firkin.drivers.qemu.stores import is_store, read_store
from firkin.host.root_images import RootImages
from firkin.law.driver import BootPlan
from firkin.law.errors import SnapshotIntegrityFailure


class MachineRoots:
    """Of one driver."""

    def __init__(self, images: RootImages, seeds: Seeds) -> None:
        self._images = images
        self._seeds = seeds

    async def of(self, plan: BootPlan) -> Path:
        """What was captured for all sandboxes of a template (`repeats`) follows the template, and is made again.

        Without the image that a capture names it is the template's, which may be the same made anew.
        """
        if plan.captured and not plan.repeats:
            store = await asyncio.to_thread(read_store, Path(plan.captured))
            named = self._images.named(store.fit.root)
            if named is not None:
                return named
        return await self._images.image(plan.root, lambda line: None)

    def named(self, image: str) -> Path | None:
        """The file of that image, if there is one."""
        return self._images.named(image)

    def hold(self, image: str) -> None:
        """A machine on it has just ended, which may have been captured a moment ago."""
        self._images.hold(image)

    def forget_begun(self) -> None:
        """Remove what a killed server had begun. Blocks."""
        self._images.forget_begun()

    def forget(self, living: Collection[str], captures: Iterable[Path]) -> None:
        """Remove what neither a template nor one of `captures` needs, nor a machine that runs on a `living` image.

        Blocks.
        """
        needed = {*living, *self._images.wanted()}
        self._seeds.forget_others(needed)
        self._images.forget_others(needed | set(_named_in(captures)))


def _named_in(captures: Iterable[Path]) -> Iterable[str]:
    """Of what is damaged nothing is known; nothing can go on from there, either."""
    for folder in captures:
        with suppress(SnapshotIntegrityFailure):
            if is_store(folder):
                yield read_store(folder).fit.root
