"""Watching directories in memory: changes are kept with their watch until they are asked for."""

from __future__ import annotations

import asyncio
import posixpath
import secrets
from collections import deque
from collections.abc import Mapping

from firkin.drivers.memory.agent import Operation, Stream
from firkin.drivers.memory.file_operations import entry, path_of
from firkin.drivers.memory.machine import Machine
from firkin.drivers.memory.tree import DIRECTORY, Fault, Node, Tree
from firkin.wire.codec import Object, flag, integer

_EVENTS_AN_ANSWER = 200
_MOST_KEPT = 100_000


class Watch:
    """`changed` is what the tree calls. What does not fit is lost, and told after what did."""

    def __init__(self, tree: Tree, path: str, *, recursive: bool, with_entry: bool) -> None:
        self._tree = tree
        self._path = path
        self._top = tree.locate(path)[0]
        self._recursive = recursive
        self._with_entry = with_entry
        self._kept: deque[Object] = deque()
        self._lost = False
        self._asked = 0
        self._turn = asyncio.Lock()
        self._wake = asyncio.Event()

    def changed(self, kind: str, real: str) -> None:
        name = posixpath.relpath(real, self._top)
        if name.startswith("..") or name == "." or ("/" in name and not self._recursive):
            return
        facts: Object = {"kind": kind, "name": name}
        found = _present(self._tree, real) if self._with_entry else None
        if found is not None:
            facts["entry"] = entry(self._tree, posixpath.join(self._path, name), found)
        self._lost = self._lost or len(self._kept) >= _MOST_KEPT
        if not self._lost:
            self._kept.append(facts)
        self._wake.set()

    async def page(self, *, wait: bool) -> Object:
        """Who waits is answered, with nothing if need be, before the next who asks."""
        self._asked += 1
        mine = self._asked
        self._wake.set()
        async with self._turn:
            while wait and mine == self._asked and not self._kept and not self._lost:
                self._wake.clear()
                await self._wake.wait()
            if self._lost and not self._kept:
                raise Fault("limit", "changes came faster than they were asked for; some are lost", self._path)
            events = [self._kept.popleft() for _ in range(min(len(self._kept), _EVENTS_AN_ANSWER))]
            return {"events": events, "left": len(self._kept)}


def _present(tree: Tree, real: str) -> Node | None:
    try:
        return tree.locate(real, follow=False)[1]
    except Fault:
        return None


async def _watch(machine: Machine, stream: Stream, facts: Object) -> None:
    path, tree = path_of(facts), machine.tree
    flag(facts, "network")  # there are no network file systems in memory: both answers are the same
    if tree.locate(path)[1].kind != DIRECTORY:
        raise Fault("not_directory", f"{path!r} is not a directory", path)
    watch = Watch(tree, path, recursive=flag(facts, "recursive"), with_entry=flag(facts, "entry"))
    number = secrets.randbits(48)  # not the number of a watch in a life before this one
    machine.watches[number] = watch
    tree.listen(watch.changed)
    if flag(facts, "held"):
        stream.result({"watch": number})
        return
    try:
        stream.event({"watch": number})
        await asyncio.get_running_loop().create_future()  # until the host cancels
    finally:
        _end(machine, number)


async def _changes(machine: Machine, stream: Stream, facts: Object) -> None:
    watch = machine.watches.get(integer(facts, "watch"))
    if watch is None:
        raise Fault("not_found", "there is no such watch")
    stream.result(await watch.page(wait=flag(facts, "wait")))


async def _unwatch(machine: Machine, stream: Stream, facts: Object) -> None:
    _end(machine, integer(facts, "watch"))
    stream.result({})


def _end(machine: Machine, number: int) -> None:
    watch = machine.watches.pop(number, None)
    if watch is not None:
        machine.tree.unlisten(watch.changed)


WATCH_OPERATIONS: Mapping[str, Operation] = {"watch": _watch, "changes": _changes, "unwatch": _unwatch}
