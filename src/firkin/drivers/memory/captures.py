"""The files of an instance as one tar in a host directory.

What a tar has no field for is in its extended headers, below `firkin.`. The
mount ``/proc`` is no part of an instance's files. A capture may have been made
by a stranger and imported: whatever it says ends up in a `Tree`, and only there.
"""

from __future__ import annotations

import io
import json
import os
import posixpath
import tarfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from firkin.drivers.memory.tree import DIRECTORY, FILE, OTHER, SYMLINK, Fault, Node, Tree

NAME = "files.tar"
MAX_SURPLUS = 1 << 20  # what an instance has beside the files that its disk was charged for, in bytes

_TYPES = {FILE: tarfile.REGTYPE, DIRECTORY: tarfile.DIRTYPE, SYMLINK: tarfile.SYMTYPE, OTHER: tarfile.FIFOTYPE}
_KINDS = {type: kind for kind, type in _TYPES.items()}
_IDS, _TIMES = 1 << 32, 1 << 63
_MTIME, _PROGRAM, _METADATA = "firkin.mtime_ns", "firkin.program", "firkin.metadata"


@dataclass(frozen=True, slots=True)
class Copied:
    """A node as it was, and its path without the first slash: empty for the root."""

    path: str
    node: Node


def copied(tree: Tree) -> list[Copied]:
    """Every file as it is at this instant, directories before what is in them."""
    return [Copied(path, node.copy()) for path, node in _walk(tree.root)]


def _walk(root: Node) -> Iterator[tuple[str, Node]]:
    """Without recursion: how deep the directories go is for the guest to say."""
    waiting = [("", root)]
    while waiting:
        path, node = waiting.pop()
        yield path, node
        if path != "proc":
            waiting += [(posixpath.join(path, name), child) for name, child in node.children.items()]


def write(files: list[Copied], into: Path) -> None:
    """Durably. Blocks; raises `OSError`."""
    with open(into / NAME, "xb") as out:
        with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT, errors="surrogateescape") as archive:
            for file in files:
                archive.addfile(_header(file), io.BytesIO(file.node.data))
        out.flush()
        os.fsync(out.fileno())
    folder = os.open(into, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _header(file: Copied) -> tarfile.TarInfo:
    node = file.node
    header = tarfile.TarInfo(file.path or ".")
    header.type = _TYPES[node.kind]
    header.mode, header.uid, header.gid = node.mode, node.uid, node.gid
    header.size, header.linkname = len(node.data), node.target
    header.pax_headers = {_MTIME: str(node.mtime_ns)}
    if node.program:
        header.pax_headers[_PROGRAM] = node.program
    if node.metadata:
        header.pax_headers[_METADATA] = json.dumps(node.metadata)
    return header


def read(tree: Tree, source: Path, programs: Collection[str]) -> None:
    """Fill the empty `tree` from the capture in `source`. Blocks; `Fault` for what is no capture or is too large."""
    try:
        with tarfile.open(source / NAME, "r:", encoding="utf-8", errors="surrogateescape") as archive:
            _fill(tree, archive, programs)
    except (OSError, tarfile.TarError, ValueError, EOFError, RecursionError) as error:
        raise Fault("invalid", f"the captured files cannot be read: {error}") from error


def _fill(tree: Tree, archive: tarfile.TarFile, programs: Collection[str]) -> None:
    folders = {"": tree.root}
    for header in archive:
        node = _node(header, programs)
        if node.kind == FILE:
            _check_size(tree, header)
            content = archive.extractfile(header)
            tree.overwrite(node, b"" if content is None else content.read())
        if header.name == "." and node.kind == DIRECTORY:
            tree.root.mode, tree.root.uid, tree.root.gid = node.mode, node.uid, node.gid
            tree.root.mtime_ns = node.mtime_ns
            continue
        folder, name = posixpath.split(header.name)
        if folder not in folders or name in ("", ".", "..") or "\0" in name or name in folders[folder].children:
            raise ValueError(f"{header.name[:80]!r} has no place")
        folders[folder].children[name] = node
        if node.kind == DIRECTORY:
            folders[header.name] = node


def _check_size(tree: Tree, header: tarfile.TarInfo) -> None:
    if header.issparse() or header.size < 0:
        raise ValueError("a sparse file is not allowed")
    if tree.used + header.size > tree.limit + MAX_SURPLUS:
        raise Fault("no_space", f"the captured files do not fit on a disk of {tree.limit} bytes")


def _node(header: tarfile.TarInfo, programs: Collection[str]) -> Node:
    kind, program = _KINDS.get(header.type), header.pax_headers.get(_PROGRAM, "")
    if kind is None or (program and program not in programs):
        raise ValueError(f"{header.name[:80]!r} is of an unknown kind")
    mtime_ns = int(header.pax_headers.get(_MTIME, "0"))
    if not (0 <= header.uid < _IDS and 0 <= header.gid < _IDS and abs(mtime_ns) < _TIMES):
        raise ValueError(f"the owner or the time of {header.name[:80]!r} is out of range")
    node = Node(kind, header.mode & 0o7777, header.uid, header.gid)
    node.mtime_ns = mtime_ns
    node.target, node.program = header.linkname, program
    metadata = json.loads(header.pax_headers.get(_METADATA, "{}"))
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError(f"the metadata of {header.name[:80]!r} is malformed")
    node.metadata = metadata
    return node
