"""The blobs of an image on their way from a registry into the store, each fetched at most once.

They wait in a folder of the image's own until its layers are made. An interrupted
pull leaves whole blobs there, which the next one checks and takes. A layer that
is in the store already is not fetched: a file without content stands for its
blob, so that skopeo passes it over. None can be mistaken for the real thing,
because whoever unpacks a blob checks its digest.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from firkin.host.directories import remove_tree
from firkin.host.image_manifests import Image, LayerBlob
from firkin.host.image_names import ImageName
from firkin.host.registries import Registry
from firkin.host.stoppable import Stopped, digest_of_file, in_thread

_LAYOUT = "pulled"


class Pull:
    """The blobs of `image` below `pulls`; with `whose`, apart from what others pull of it."""

    def __init__(self, pulls: Path, image: Image, whose: str = "") -> None:
        self._folder = pulls / "-".join((image.digest.replace(":", "-"), *([whose] if whose else ())))
        self._image = image

    @property
    def blobs(self) -> Path:
        return self._folder

    async def fetch(self, registry: Registry, name: ImageName, scratch: Path, present: Sequence[LayerBlob]) -> None:
        """Bring all but those of `present`."""
        await in_thread(lambda stopped: self._make_ready(present, stopped))
        layout = scratch / _LAYOUT
        await registry.fetch(name, self._image, layout, self._folder)
        await remove_tree(layout)

    async def done(self) -> None:
        """The layers are made: the blobs are needed no more."""
        await remove_tree(self._folder)

    def _make_ready(self, present: Sequence[LayerBlob], stopped: Stopped) -> None:
        """Everything in the folder is whole or stands for a layer that is in the store."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.utime(self._folder)
        digests = {layer.digest for layer in self._image.layers} - {layer.digest for layer in present}
        for path in self._folder.glob("*/*"):
            if f"{path.parent.name}:{path.name}" not in digests or not _is_whole(path, stopped):
                path.unlink()
        for layer in present:
            path = self._folder / layer.digest.replace(":", "/")
            path.parent.mkdir(mode=0o700, exist_ok=True)
            path.touch(mode=0o600)
            os.truncate(path, layer.size)


def _is_whole(path: Path, stopped: Stopped) -> bool:
    with path.open("rb") as file:
        return digest_of_file(file, path.parent.name, stopped) == path.name


async def forget_pulls(pulls: Path, *, before: float) -> None:
    """Remove what interrupted pulls left and nobody has come back for."""
    for folder in sorted(pulls.glob("*")):
        if folder.stat().st_mtime <= before:
            await remove_tree(folder)
