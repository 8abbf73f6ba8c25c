"""OCI image layouts: which image, is it whole, its layers applied, its wishes read.

A layout is a stranger's word: every blob is checked against its digest before
it is read, and every number and name in its JSON against what it may be.
Whiteouts are obeyed inside the tree only.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, Any

from firkin.host.archives import Allowance, Extraction, corrupt
from firkin.host.confined import ConfinedTree, remove
from firkin.law.errors import TemplateFault, TemplatePrepareFailure

_MAX_JSON = 4 << 20
_MAX_LAYERS = 512
_MAX_DEPTH = 4
_DIGEST = re.compile(r"(sha256|sha512):([0-9a-f]{64,128})")
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "ppc64le": "ppc64le", "s390x": "s390x"}
_NAME_OF_REF = "org.opencontainers.image.ref.name"
_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A whole image of this machine's kind. `layers` are blob digests, lowest first."""

    digest: str
    layers: tuple[str, ...]
    env: Mapping[str, str]
    user: str
    workdir: str


class Layout:
    """An OCI layout folder on the host."""

    def __init__(self, path: str) -> None:
        self._path = path
        if not os.path.isfile(os.path.join(path, "index.json")):
            detail = f"{path} is no OCI layout: it holds no index.json"
            raise TemplatePrepareFailure(TemplateFault.SOURCE_MISSING, detail)
        # a layout's own links may not lead to the host's files either
        self._tree = ConfinedTree.at(path)

    def __enter__(self) -> Layout:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._tree.fd)

    def image(self, tag: str = "") -> Image:
        """The image `tag` (the only one, when empty) for this machine."""
        index = self._index()
        chosen = _choose(index, tag, self._path)
        digest = _text(chosen, "digest")
        manifest = self._json(digest)
        for _ in range(_MAX_DEPTH):
            if "manifests" not in manifest:
                break
            digest = _text(_for_this_machine(manifest), "digest")
            manifest = self._json(digest)
        layers = tuple(_text(layer, "digest") for layer in _dicts(manifest, "layers"))
        if not layers or len(layers) > _MAX_LAYERS:
            raise corrupt(f"image {digest} has {len(layers)} layers; 1…{_MAX_LAYERS} are allowed")
        config = self._json(_text(_dict(manifest, "config"), "digest"))
        _check_machine(config)
        return _image(digest, layers, _dict(config, "config"))

    def apply(self, image: Image, tree: ConfinedTree, allowance: Allowance) -> int:
        """Unpack the layers of `image` into the empty `tree`. Returns how many device nodes were dropped."""
        dropped = 0
        for digest in image.layers:
            placer = _LayerPlacer(tree)
            work = Extraction(tree, allowance, placer=placer)
            with self._blob(digest) as file:
                work.run(file, called=f"layer {digest}")
            dropped += work.dropped
        return dropped

    def _index(self) -> dict[str, Any]:
        try:
            return _parse(self._tree.read("index.json") or b"", "index.json")
        except OSError as failure:
            raise corrupt(f"index.json of {self._path} cannot be read: {failure.strerror}") from failure

    def _blob(self, digest: str) -> IO[bytes]:
        """The blob, already checked against `digest`, at its start."""
        match = _DIGEST.fullmatch(digest)
        if match is None:
            raise corrupt(f"{digest[:100]!r} is no digest")
        try:
            file = os.fdopen(self._tree.open(f"blobs/{match[1]}/{match[2]}", os.O_RDONLY | os.O_NONBLOCK), "rb")
        except OSError as failure:
            raise corrupt(f"blob {digest} is missing: {failure.strerror}") from failure
        if hashlib.file_digest(file, match[1]).hexdigest() != match[2]:
            file.close()
            raise corrupt(f"blob {digest} does not have that digest")
        file.seek(0)
        return file

    def _json(self, digest: str) -> dict[str, Any]:
        with self._blob(digest) as file:
            content = file.read(_MAX_JSON + 1)
        if len(content) > _MAX_JSON:
            raise corrupt(f"{digest} is larger than a manifest may be")
        return _parse(content, digest)


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


def _choose(index: dict[str, Any], tag: str, path: str) -> dict[str, Any]:
    found = _dicts(index, "manifests")
    tags = [str(_dict(one, "annotations").get(_NAME_OF_REF, "")) for one in found]
    if tag:
        found = [one for one, name in zip(found, tags, strict=True) if name == tag]
    if len(found) == 1:
        return found[0]
    named = ", ".join(repr(name) for name in tags if name) or "none"
    if not found:
        detail = f"{path} holds no image {tag!r}; its tags: {named}" if tag else f"{path} holds no image"
        raise TemplatePrepareFailure(TemplateFault.SOURCE_MISSING, detail)
    if tag or not any(tags):
        return _for_this_machine({"manifests": found})
    detail = f"{path} holds {len(found)} images; name one of its tags ({named}), as in oci:FOLDER:TAG"
    raise TemplatePrepareFailure(TemplateFault.SOURCE_MISSING, detail)


def machine_architecture() -> str:
    """This machine's architecture in the words of OCI."""
    machine = os.uname().machine
    return _ARCHITECTURES.get(machine, machine)


def _for_this_machine(index: dict[str, Any]) -> dict[str, Any]:
    ours = machine_architecture()
    offered = []
    for one in _dicts(index, "manifests"):
        platform = _dict(one, "platform")
        if platform.get("architecture") == ours and platform.get("os") == "linux":
            return one
        offered.append(f"{platform.get('os')}/{platform.get('architecture')}")
    raise _wrong_machine(", ".join(offered)[:300])


def _check_machine(config: dict[str, Any]) -> None:
    system, architecture = config.get("os", "linux"), config.get("architecture", machine_architecture())
    if (system, architecture) != ("linux", machine_architecture()):
        raise _wrong_machine(f"{system}/{architecture}"[:100])


def _wrong_machine(offered: str) -> TemplatePrepareFailure:
    detail = f"the image is for {offered or 'no machine'}; this machine is linux/{machine_architecture()}"
    return TemplatePrepareFailure(TemplateFault.UNSUPPORTED_IMAGE_CONFIG, detail)


def _image(digest: str, layers: tuple[str, ...], config: dict[str, Any]) -> Image:
    pairs = config.get("Env") or []
    if not isinstance(pairs, list) or not all(isinstance(pair, str) and "\0" not in pair for pair in pairs):
        raise corrupt("the image's Env is not a list of NAME=VALUE")
    named = [pair.partition("=") for pair in pairs]
    return Image(
        digest=digest,
        layers=layers,
        env={name: value for name, _, value in named if name},
        user=_optional_text(config, "User"),
        workdir=_optional_text(config, "WorkingDir"),
    )


def _parse(content: bytes, called: str) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as failure:
        raise corrupt(f"{called} is not JSON: {failure}") from failure
    if not isinstance(value, dict):
        raise corrupt(f"{called} is not a JSON object")
    return value


def _dicts(value: dict[str, Any], key: str) -> list[dict[str, Any]]:
    found = value.get(key) or []
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise corrupt(f"{key!r} is not a list of objects")
    return found


def _dict(value: dict[str, Any], key: str) -> dict[str, Any]:
    found = value.get(key) or {}
    if not isinstance(found, dict):
        raise corrupt(f"{key!r} is not an object")
    return found


def _text(value: dict[str, Any], key: str) -> str:
    found = value.get(key)
    if not isinstance(found, str):
        raise corrupt(f"{key!r} is not a text")
    return found


def _optional_text(config: dict[str, Any], key: str) -> str:
    return _text(config, key) if config.get(key) else ""
