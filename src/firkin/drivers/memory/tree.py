"""A file system in memory: nodes, names and the walk between them.

Names are `str` with undecodable bytes as lone surrogates, as on the wire. The
sum of all file contents is bounded by the sandbox's disk.
"""

from __future__ import annotations

import posixpath
import time
from collections.abc import Callable

MAX_LINKS = 40
MAX_NAME_BYTES = 255

FILE, DIRECTORY, SYMLINK, OTHER = "file", "directory", "symlink", "other"


class Fault(Exception):
    """An operation that failed: `code` is one of the wire's codes."""

    def __init__(self, code: str, message: str, path: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.path = path


class Node:
    """One inode. `program` names the built-in behaviour that an executable file stands for."""

    __slots__ = ("children", "data", "gid", "kind", "metadata", "mode", "mtime_ns", "program", "target", "uid")

    def __init__(self, kind: str, mode: int, uid: int = 0, gid: int = 0) -> None:
        self.kind = kind
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.mtime_ns = time.time_ns()
        self.data = bytearray()
        self.children: dict[str, Node] = {}
        self.target = ""
        self.metadata: dict[str, str] = {}
        self.program = ""

    def copy(self) -> Node:
        """The same without what is below it."""
        twin = Node(self.kind, self.mode, self.uid, self.gid)
        twin.mtime_ns, twin.target, twin.program = self.mtime_ns, self.target, self.program
        twin.data[:] = self.data
        twin.metadata = dict(self.metadata)
        return twin

    @property
    def size(self) -> int:
        if self.kind == DIRECTORY:
            return 4096
        if self.kind == SYMLINK:
            return len(self.target.encode("utf-8", "surrogateescape"))
        return len(self.data)


Listener = Callable[[str, str], None]


class Tree:
    """The whole file system. `limit` is the most that all files together may hold, in bytes."""

    def __init__(self, limit: int) -> None:
        self.root = Node(DIRECTORY, 0o755)
        self.limit = limit
        self.used = 0
        self._listeners: list[Listener] = []

    # -- telling watchers -----------------------------------------------------------------------

    def listen(self, listener: Listener) -> None:
        """`listener` is called with kind and real path of every change from now on."""
        self._listeners.append(listener)

    def unlisten(self, listener: Listener) -> None:
        self._listeners.remove(listener)

    def changed(self, kind: str, path: str) -> None:
        for listener in list(self._listeners):
            listener(kind, path)

    # -- walking --------------------------------------------------------------------------------

    def locate(self, path: str, *, follow: bool = True) -> tuple[str, Node]:
        """The real path and node of `path`; `Fault` when there is none."""
        real, node = self.seek(path, follow=follow)
        if node is None:
            raise Fault("not_found", f"{path!r} does not exist", path)
        return real, node

    def seek(self, path: str, *, follow: bool = True) -> tuple[str, Node | None]:
        """As `locate`, but with None when only the last name is missing."""
        real, node = "/", self.root
        trail = [self.root]
        names = _names(path)
        budget = MAX_LINKS
        while names:
            name = names.pop(0)
            if node.kind != DIRECTORY:
                raise Fault("not_directory", f"{real!r} is not a directory", path)
            if name == "..":
                if len(trail) > 1:
                    trail.pop()
                real, node = posixpath.dirname(real), trail[-1]
                continue
            child = node.children.get(name)
            here = posixpath.join(real, name)
            if child is None:
                if names:
                    raise Fault("not_found", f"{path!r} does not exist", path)
                return here, None
            if child.kind == SYMLINK and (names or follow):
                budget -= 1
                if budget < 0:
                    raise Fault("loop", f"too many symbolic links in {path!r}", path)
                names = _names(child.target) + names
                if child.target.startswith("/"):
                    real, node, trail = "/", self.root, [self.root]
                continue
            real, node = here, child
            trail.append(node)
        return real, node

    def parent(self, path: str) -> tuple[str, Node]:
        """The directory that holds the last name of real path `path`."""
        real, node = self.locate(posixpath.dirname(path) or "/")
        if node.kind != DIRECTORY:
            raise Fault("not_directory", f"{real!r} is not a directory", path)
        return real, node

    # -- changing -------------------------------------------------------------------------------

    def add(self, real: str, node: Node) -> None:
        """Put `node` at a real path whose name is free."""
        _, holder = self.parent(real)
        holder.children[posixpath.basename(real)] = node
        holder.mtime_ns = time.time_ns()
        self.changed("create", real)

    def make_file(self, real: str, mode: int = 0o644, uid: int = 0, gid: int = 0) -> Node:
        node = Node(FILE, mode, uid, gid)
        self.add(real, node)
        return node

    def make_directory(self, path: str, *, mode: int = 0o755, uid: int = 0, gid: int = 0) -> Node:
        """The directory at `path`, made with all its missing parents."""
        real, node = "/", self.root
        for name in _names(path):
            real, found = self.seek(posixpath.join(real, name))
            if found is None:
                found = Node(DIRECTORY, mode, uid, gid)
                self.add(real, found)
            if found.kind != DIRECTORY:
                raise Fault("not_directory", f"{real!r} is not a directory", path)
            node = found
        return node

    def resize(self, node: Node, size: int) -> None:
        """Cut or extend with zeros; `Fault` when the disk is full."""
        self._charge(size - len(node.data))
        if size < len(node.data):
            del node.data[size:]
        else:
            node.data.extend(bytes(size - len(node.data)))

    def extend(self, real: str, node: Node, data: bytes) -> None:
        self._charge(len(data))
        node.data += data
        node.mtime_ns = time.time_ns()
        self.changed("write", real)

    def overwrite(self, node: Node, data: bytes) -> None:
        """Give it other content, whatever the disk's limit says: for what an instance gets at its start."""
        self.used += len(data) - len(node.data)
        node.data[:] = data

    def _charge(self, amount: int) -> None:
        if amount > 0 and self.used + amount > self.limit:
            raise Fault("no_space", f"the disk of {self.limit} bytes is full")
        self.used += amount

    def drop(self, real: str) -> None:
        """Take the name at `real` away, with everything below it."""
        _, holder = self.parent(real)
        node = holder.children.pop(posixpath.basename(real))
        self._refund(node)
        holder.mtime_ns = time.time_ns()
        self.changed("remove", real)

    def _refund(self, node: Node) -> None:
        self.used -= len(node.data)
        for child in node.children.values():
            self._refund(child)

    def move(self, source: str, target: str) -> None:
        """Both are real paths; whatever was at `target` is replaced."""
        _, origin = self.parent(source)
        _, goal = self.parent(target)
        old = goal.children.get(posixpath.basename(target))
        node = origin.children.pop(posixpath.basename(source))
        if old is not None:
            self._refund(old)
        goal.children[posixpath.basename(target)] = node
        self.changed("rename", source)
        self.changed("create", target)


def _names(path: str) -> list[str]:
    names = [name for name in path.split("/") if name not in ("", ".")]
    if any(len(name.encode("utf-8", "surrogateescape")) > MAX_NAME_BYTES for name in names):
        raise Fault("name_too_long", f"a name in {path[:80]!r} is longer than {MAX_NAME_BYTES} bytes", path)
    return names
