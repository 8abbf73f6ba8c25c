"""Names of images of registries, and where else they may be found.

``debian:12`` means ``docker.io/library/debian:12``. A mirror says of all names
that begin in one way where they are instead: in another registry, or in layouts
and archives on this machine. What a caller names is checked before it becomes
part of a path: a name has no ``..`` in it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from firkin.law.errors import InvalidReason, InvalidSpec

_HUB, _LIBRARY = "docker.io", "library"
_HUB_ALIASES = ("index.docker.io", "registry-1.docker.io")
_WORD = r"[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*"
_HOST = r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*|\[[0-9a-fA-F:]+\])"
_NAME = re.compile(
    rf"(?:(?P<host>{_HOST}(?::[0-9]{{1,5}})?)/)?(?P<path>{_WORD}(?:/{_WORD})*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)
_STARTS = re.compile(rf"{_HOST}(?::[0-9]{{1,5}})?/(?:{_WORD}/)*")
_PLACES = re.compile(r"[A-Za-z0-9\[][A-Za-z0-9._:/@\[\]-]*")
_LONGEST = 512
LOCAL = ("oci", "oci-archive", "docker-archive")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageName:
    """`repository` with its registry; of `tag` and `digest` the digest decides."""

    repository: str
    tag: str = ""
    digest: str = ""

    def __str__(self) -> str:
        """The whole name, as mirrors are matched with it."""
        return f"{self.tagged}@{self.digest}" if self.digest else self.tagged

    @property
    def tagged(self) -> str:
        return f"{self.repository}:{self.tag}" if self.tag else self.repository

    @property
    def fetched(self) -> str:
        """The form in which a registry is asked: it takes a tag or a digest, never both."""
        return self.at(self.digest) if self.digest else self.tagged

    def at(self, digest: str) -> str:
        return f"{self.repository}@{digest}"


def parse_image_name(text: str) -> ImageName:
    """The whole name of `text`. `InvalidSpec` for what is none."""
    match = _NAME.fullmatch(text) if len(text) <= _LONGEST else None
    if match is None:
        detail = f"{text[:256]!r} is no image reference"
        raise InvalidSpec("prepare template", InvalidReason.MISSING_TEMPLATE, detail)
    host, path = match["host"] or "", match["path"]
    if host and not _is_registry(host):
        host, path = "", f"{host}/{path}"
    host = canonical_registry(host) if host else _HUB
    if host == _HUB and "/" not in path:
        path = f"{_LIBRARY}/{path}"
    digest = match["digest"] or ""
    tag = match["tag"] or ("" if digest else "latest")
    return ImageName(repository=f"{host}/{path}", tag=tag, digest=digest)


def canonical_registry(host: str) -> str:
    """The hub has several names; any other registry is called as it is."""
    return _HUB if host in _HUB_ALIASES else host


def _is_registry(host: str) -> bool:
    """``team/image`` is of the hub, ``localhost/image`` and ``registry.example/image`` are not."""
    return "." in host or ":" in host or host == "localhost"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mirrored:
    """Where an image is instead: `place` with a transport of files, or a name of another registry."""

    place: str

    @property
    def is_local(self) -> bool:
        return self.place.partition(":")[0] in LOCAL


def mirrored(name: ImageName, mirrors: Mapping[str, str]) -> Mirrored | None:
    """What the longest of the beginnings in `mirrors` makes of `name`; None when none fits.

    A beginning ends at a ``/``, ``:`` or ``@`` of the name or at its end. The digest
    of a local image is left out of the result: the files are compared with it.
    """
    whole = str(name)
    beginnings = {_canonical_start(start): place for start, place in mirrors.items()}
    for beginning in sorted(beginnings, key=len, reverse=True):
        rest = whole.removeprefix(beginning)
        if not whole.startswith(beginning) or not (beginning.endswith("/") or rest[:1] in ("", ":", "@")):
            continue
        place = Mirrored(place=beginnings[beginning] + rest)
        if place.is_local:
            return Mirrored(place=place.place.removesuffix(f"@{name.digest}") if name.digest else place.place)
        return place
    return None


def check_mirrors(mirrors: Mapping[str, str]) -> None:
    """`InvalidSpec` that names the first mirror that can never be used."""
    for start, place in mirrors.items():
        kind, _, path = place.partition(":")
        sound = _STARTS.fullmatch(start) is not None if start.endswith("/") else _NAME.fullmatch(start) is not None
        if not sound or not (path.startswith("/") if kind in LOCAL else _PLACES.fullmatch(place)):
            detail = (
                f"the image mirror {start!r} = {place!r} cannot be used; write a beginning such as 'docker.io/library/'"
                " and another registry's such as '127.0.0.1:5000/library/', or oci:/FOLDER, oci-archive:/FILE,"
                " docker-archive:/FILE"
            )
            raise InvalidSpec("read settings", InvalidReason.INVALID_SETTINGS, detail)


def _canonical_start(start: str) -> str:
    """``debian`` means here what it means anywhere; a beginning with ``/`` at its end is taken as it is."""
    if start.endswith("/"):
        return start
    name = parse_image_name(start)
    return str(name) if ":" in start.rpartition("/")[2] or name.digest else name.repository
