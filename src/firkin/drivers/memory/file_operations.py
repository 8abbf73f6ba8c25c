"""Operations on files, as `firkin.wire.operations` lists them."""

from __future__ import annotations

import asyncio
import posixpath
import stat
from collections.abc import Iterator, Mapping

from firkin.drivers.memory.accounts import Account, account, group_name, owner_name
from firkin.drivers.memory.agent import Operation, Stream
from firkin.drivers.memory.machine import Machine
from firkin.drivers.memory.tree import DIRECTORY, FILE, OTHER, SYMLINK, Fault, Node, Tree
from firkin.wire.codec import Object, flag, integer, mapping, text
from firkin.wire.frames import CHUNK

ENTRIES_A_MESSAGE = 256


def path_of(facts: Object, key: str = "path") -> str:
    path = text(facts, key)
    if not path.startswith("/") or "\0" in path:
        raise Fault("invalid", f"{path[:80]!r} is not an absolute path")
    return path


def entry(tree: Tree, path: str, node: Node) -> Object:
    """The wire's description of `node`, which was asked for as `path`."""
    facts: Object = {
        "path": path,
        "type": node.kind,
        "size": node.size,
        "mode": node.mode | stat.S_IFCHR if node.kind == OTHER else node.mode,  # they stand for devices
        "uid": node.uid,
        "gid": node.gid,
        "owner": owner_name(tree, node.uid),
        "group": group_name(tree, node.gid),
        "mtime_ns": node.mtime_ns,
    }
    if node.metadata:
        facts["metadata"] = dict(node.metadata)
    if node.kind == SYMLINK:
        facts.update(_link_facts(tree, path))
    return facts


def _link_facts(tree: Tree, path: str) -> Object:
    try:
        real, target = tree.locate(path)
    except Fault:
        return {}
    return {"link": real, "link_type": target.kind, "link_mode": target.mode}


async def _stat(machine: Machine, stream: Stream, facts: Object) -> None:
    path = path_of(facts)
    _, node = machine.tree.locate(path, follow=flag(facts, "follow"))
    stream.result(entry(machine.tree, path, node))


async def _list(machine: Machine, stream: Stream, facts: Object) -> None:
    path, depth = path_of(facts), integer(facts, "depth", 1)
    _, node = machine.tree.locate(path)
    if node.kind != DIRECTORY:
        raise Fault("not_directory", f"{path!r} is not a directory", path)
    batch: list[Object] = []
    for name, child in _walk(path, node, depth or -1):
        batch.append(entry(machine.tree, name, child))
        if len(batch) == ENTRIES_A_MESSAGE:
            stream.event({"entries": batch})
            batch = []
            await asyncio.sleep(0)
    if batch:
        stream.event({"entries": batch})
    stream.result({})


def _walk(path: str, node: Node, depth: int) -> Iterator[tuple[str, Node]]:
    """Depth first in name order; a negative depth has no limit."""
    for name, child in sorted(node.children.items()):
        below = posixpath.join(path, name)
        yield below, child
        if child.kind == DIRECTORY and depth != 1:
            yield from _walk(below, child, depth - 1)


async def _read(machine: Machine, stream: Stream, facts: Object) -> None:
    path = path_of(facts)
    offset, length = integer(facts, "offset", 0), integer(facts, "length", -1)
    _, node = machine.tree.locate(path)
    if node.kind == DIRECTORY:
        raise Fault("is_directory", f"{path!r} is a directory", path)
    if node.kind != FILE:
        raise Fault("not_regular", f"{path!r} is not a regular file", path)
    stream.event(entry(machine.tree, path, node))
    end = len(node.data) if length < 0 else min(len(node.data), offset + length)
    for start in range(offset, end, CHUNK):
        await stream.data(bytes(node.data[start : min(start + CHUNK, end)]))
    stream.result({})


async def _write(machine: Machine, stream: Stream, facts: Object) -> None:
    path, tree = path_of(facts), machine.tree
    who = account(tree, text(facts, "user", ""))
    real, node = _opened(machine, facts, path, who)
    while (data := await stream.receive()) is not None:
        tree.extend(real, node, data)
        stream.took(len(data))
    stream.result(entry(tree, path, node))


def _opened(machine: Machine, facts: Object, path: str, who: Account) -> tuple[str, Node]:
    tree = machine.tree
    _reject_directory_name(path)
    if flag(facts, "parents"):
        tree.make_directory(posixpath.dirname(path), uid=who.uid, gid=who.gid)
    real, node = tree.seek(path)
    if node is None:
        node = tree.make_file(real, integer(facts, "mode", 0o644) & 0o7777, who.uid, who.gid)
    elif node.kind == DIRECTORY:
        raise Fault("is_directory", f"{path!r} is a directory", path)
    elif node.kind != FILE:
        raise Fault("not_regular", f"{path!r} is not a regular file", path)
    node.uid, node.gid = who.uid, who.gid
    if not flag(facts, "append"):
        tree.resize(node, 0)
    if facts.get("metadata") is not None:
        node.metadata = mapping(facts, "metadata")
    tree.changed("write", real)
    return real, node


def _reject_directory_name(path: str) -> None:
    if path.endswith("/"):
        raise Fault("is_directory", f"{path!r} names a directory", path)


async def _mkdir(machine: Machine, stream: Stream, facts: Object) -> None:
    path, tree = path_of(facts), machine.tree
    who = account(tree, text(facts, "user", ""))
    if flag(facts, "parents"):
        tree.make_directory(posixpath.dirname(path.rstrip("/")), uid=who.uid, gid=who.gid)
    real, node = tree.seek(path.rstrip("/") or "/")
    if node is not None:
        if node.kind == DIRECTORY:
            raise Fault("exists", f"{path!r} already exists", path)
        raise Fault("not_directory", f"{path!r} is not a directory", path)
    mode = 0o755 if facts.get("mode") is None else integer(facts, "mode") & 0o7777
    node = Node(DIRECTORY, mode, who.uid, who.gid)
    tree.add(real, node)
    stream.result(entry(tree, path, node))


async def _rename(machine: Machine, stream: Stream, facts: Object) -> None:
    path, target, tree = path_of(facts), path_of(facts, "target"), machine.tree
    who = account(tree, text(facts, "user", ""))
    source, node = tree.locate(path.rstrip("/") or "/", follow=False)
    tree.make_directory(posixpath.dirname(target.rstrip("/")), uid=who.uid, gid=who.gid)
    goal, there = tree.seek(target.rstrip("/") or "/", follow=False)
    if goal == source:
        stream.result(entry(tree, target, node))
        return
    if node.kind == DIRECTORY and (goal + "/").startswith(source + "/"):
        raise Fault("invalid", f"{path!r} cannot be moved below itself", path)
    if there is not None:
        _replaceable(node, there, target)
    tree.move(source, goal)
    stream.result(entry(tree, target, node))


def _replaceable(node: Node, there: Node, target: str) -> None:
    if there.kind == DIRECTORY and node.kind != DIRECTORY:
        raise Fault("is_directory", f"{target!r} is a directory", target)
    if there.kind != DIRECTORY and node.kind == DIRECTORY:
        raise Fault("not_directory", f"{target!r} is not a directory", target)
    if there.children:
        raise Fault("not_empty", f"{target!r} is not empty", target)


async def _remove(machine: Machine, stream: Stream, facts: Object) -> None:
    path, tree = path_of(facts), machine.tree
    real, node = tree.locate(path.rstrip("/") or "/", follow=False)
    if real == "/":
        raise Fault("permission", "the root directory cannot be removed", path)
    if node.children and not flag(facts, "recursive"):
        raise Fault("not_empty", f"{path!r} is not empty", path)
    _drop_all(tree, real, node)
    stream.result({})


def _drop_all(tree: Tree, real: str, node: Node) -> None:
    for name, child in list(node.children.items()):
        _drop_all(tree, posixpath.join(real, name), child)
    tree.drop(real)


async def _chown(machine: Machine, stream: Stream, facts: Object) -> None:
    who = account(machine.tree, text(facts, "user"))
    real, node = machine.tree.locate(path_of(facts), follow=False)
    node.uid, node.gid = who.uid, who.gid
    machine.tree.changed("chmod", real)
    stream.result({})


async def _symlink(machine: Machine, stream: Stream, facts: Object) -> None:
    path, tree = path_of(facts), machine.tree
    who = account(tree, text(facts, "user", ""))
    real, node = tree.seek(path, follow=False)
    if node is not None:
        raise Fault("exists", f"{path!r} already exists", path)
    node = Node(SYMLINK, 0o777, who.uid, who.gid)
    node.target = text(facts, "target")
    tree.add(real, node)
    stream.result(entry(tree, path, node))


async def _readlink(machine: Machine, stream: Stream, facts: Object) -> None:
    path = path_of(facts)
    _, node = machine.tree.locate(path, follow=False)
    if node.kind != SYMLINK:
        raise Fault("invalid", f"{path!r} is not a symbolic link", path)
    stream.result({"target": node.target})


FILE_OPERATIONS: Mapping[str, Operation] = {
    "stat": _stat,
    "list": _list,
    "read": _read,
    "write": _write,
    "mkdir": _mkdir,
    "rename": _rename,
    "remove": _remove,
    "chown": _chown,
    "symlink": _symlink,
    "readlink": _readlink,
}
