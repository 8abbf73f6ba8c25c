"""OCI image layouts: which image, is it whole, its layers applied.

A layout is a stranger's word: every blob is checked against its digest before
it is read, and what a layer unpacks to against what the image said of it.
Whiteouts are obeyed inside the tree only.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tarfile
from io import BufferedReader
from typing import Any

from firkin.host.archives import Allowance, Extraction, corrupt
from firkin.host.confined import ConfinedTree, remove
from firkin.host.image_manifests import (
    DIGEST,
    MAX_JSON,
    Image,
    chosen_manifest,
    for_this_machine,
    parse,
    read_manifest,
)
from firkin.law.errors import TemplateFault, TemplatePrepareFailure

_MAX_DEPTH = 4
_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"


class Blobs:
    """The folder that holds ``sha256/DIGEST``. Its own links may not lead to the host's files."""

    def __init__(self, path: str) -> None:
        self._tree = ConfinedTree.at(path)

    def __enter__(self) -> Blobs:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._tree.fd)

    def open(self, digest: str, *, most: int | None = None) -> BufferedReader:
        """The blob, already checked against `digest`, at its start. One with more than `most` bytes is corrupt."""
        if DIGEST.fullmatch(digest) is None:
            raise corrupt(f"{digest[:100]!r} is no digest")
        algorithm, _, name = digest.partition(":")
        try:
            file = os.fdopen(self._tree.open(f"{algorithm}/{name}", os.O_RDONLY | os.O_NONBLOCK), "rb")
        except OSError as failure:
            raise corrupt(f"blob {digest} is missing: {failure.strerror}") from failure
        try:
            _check(file, digest, most)
        except BaseException:
            file.close()
            raise
        return file

    def json(self, digest: str) -> dict[str, Any]:
        return parse(self.content(digest), digest)

    def content(self, digest: str) -> bytes:
        """A manifest or a config."""
        with self.open(digest, most=MAX_JSON) as file:
            return file.read()

    def apply(self, digest: str, unpacked: str, tree: ConfinedTree, allowance: Allowance) -> int:
        """Unpack one layer on what `tree` holds. Returns how many device nodes were dropped."""
        work = Extraction(tree, allowance, placer=_LayerPlacer(tree), digest=unpacked)
        with self.open(digest) as file:
            work.run(file, called=f"layer {digest}")
        return work.dropped


class Layout:
    """An OCI layout folder on the host."""

    def __init__(self, path: str) -> None:
        self._path = path
        if not os.path.isfile(os.path.join(path, "index.json")):
            detail = f"{path} is no OCI layout: it holds no index.json"
            raise TemplatePrepareFailure(TemplateFault.SOURCE_MISSING, detail)

    @property
    def blobs(self) -> str:
        return os.path.join(self._path, "blobs")

    def image(self, tag: str = "", *, digest: str = "") -> Image:
        """The image `tag` (the only one, when empty) for this machine, or the one that `digest` names."""
        with self._opened() as blobs:
            digest = digest or chosen_manifest(self._index(), tag, self._path)
            manifest = blobs.json(digest)
            for _ in range(_MAX_DEPTH):
                if "manifests" not in manifest:
                    break
                digest = for_this_machine(manifest)
                manifest = blobs.json(digest)
            found = read_manifest(manifest, digest)
            return found.image(blobs.content(found.config))

    def _opened(self) -> Blobs:
        try:
            return Blobs(self.blobs)
        except OSError as failure:
            raise corrupt(f"{self._path} holds no blobs: {failure.strerror}") from failure

    def _index(self) -> dict[str, Any]:
        try:
            with ConfinedTree.at(self._path) as tree:
                return parse(tree.read("index.json") or b"", "index.json")
        except OSError as failure:
            raise corrupt(f"index.json of {self._path} cannot be read: {failure.strerror}") from failure


def _check(file: BufferedReader, digest: str, most: int | None) -> None:
    found = os.fstat(file.fileno())
    if not stat.S_ISREG(found.st_mode):
        raise corrupt(f"blob {digest} is no file")
    if most is not None and found.st_size > most:
        raise corrupt(f"{digest} is larger than a manifest may be")
    algorithm, _, name = digest.partition(":")
    if hashlib.file_digest(file, algorithm).hexdigest() != name:
        raise corrupt(f"blob {digest} does not have that digest")
    file.seek(0)


class _LayerPlacer:
    """Obeys whiteouts. An opaque mark hides what lower layers put there, not what this one did."""

    def __init__(self, tree: ConfinedTree) -> None:
        self._tree = tree
        self._made: dict[str, set[str]] = {}

    def __call__(self, name: str, entry: tarfile.TarInfo) -> bool:
        holder, _, last = name.rpartition("/")
        if not last.startswith(_WHITEOUT):
            self._remember(name)
            return True
        hidden = last.removeprefix(_WHITEOUT)
        if last != _OPAQUE and (hidden in ("", ".", "..") or hidden.startswith(_WHITEOUT)):
            raise corrupt(f"entry {name[:300]!r}: not a whiteout")
        try:
            with self._tree.directory(holder) as fd:
                for victim in self._hidden_below(fd, holder) if last == _OPAQUE else [hidden]:
                    remove(fd, victim)
        except FileNotFoundError:
            return False  # nothing there to hide
        except OSError as failure:
            raise corrupt(f"entry {name[:300]!r}: {failure.strerror}") from failure
        return False

    def _remember(self, name: str) -> None:
        while name:
            name, _, last = name.rpartition("/")
            children = self._made.setdefault(name, set())
            if last in children:
                return
            children.add(last)

    def _hidden_below(self, fd: int, holder: str) -> list[str]:
        return [name for name in os.listdir(fd) if name not in self._made.get(holder, ())]
