"""Work on one volume: in threads, on descriptors of its own, to be walked away from at any moment.

A thread goes on when its caller has gone. So each has a tree of its own, and what
stays open between two of its steps is closed in a thread's turn as well, by methods
that wait for the step that is under way.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterable, AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import AsyncExitStack
from functools import partial
from typing import Protocol, TypeVar

from firkin.engine.volume_faults import explained
from firkin.engine.volume_threads import VolumeThreads
from firkin.host import tree_files
from firkin.host.confined import ConfinedTree
from firkin.host.syncing import sync_filesystem
from firkin.host.tar_packing import next_piece, packed
from firkin.host.tar_unpacking import Unpacking
from firkin.host.whole_files import FoundFile
from firkin.law.volumes import VolumeAttributes, VolumePath

_PIECE = 1 << 20
T = TypeVar("T")
Wanted = Callable[[], bool]


class _Closable(Protocol):
    def close(self) -> None: ...


C = TypeVar("C", bound=_Closable)


class VolumeWork:
    """Work on one volume in threads, each with a tree of its own over the same root."""

    def __init__(self, root: int, threads: VolumeThreads, owner: str) -> None:
        self._root = root
        self._threads = threads
        self._owner = owner

    async def __call__(self, work: Callable[..., T], *arguments: object) -> T:
        """It is done in any case, also when the caller goes before its turn: only then is its tree closed."""
        working = self._threads.submit(self._owner, self._with_tree(work, *arguments))
        return await asyncio.shield(asyncio.wrap_future(working))

    async def looking(self, work: Callable[[ConfinedTree, Wanted], T]) -> T:
        """For what changes nothing: not begun when the caller has gone by then, and told when he goes meanwhile."""
        gone = threading.Event()
        tree = ConfinedTree(os.dup(self._root))

        def done() -> T:
            with tree:
                return work(tree, lambda: not gone.is_set())

        try:
            working = self._threads.submit(self._owner, done)
        except RuntimeError:
            os.close(tree.fd)
            raise
        try:
            return await asyncio.wrap_future(working)
        except asyncio.CancelledError:
            gone.set()
            if working.cancel():
                os.close(tree.fd)
            raise

    async def keeping(self, make: Callable[..., C], *arguments: object) -> C:
        """As calling it, for something that must be closed: should the caller be gone by then, it is closed here."""
        making = self._threads.submit(self._owner, self._with_tree(make, *arguments))
        try:
            return await asyncio.shield(asyncio.wrap_future(making))
        except asyncio.CancelledError:
            making.add_done_callback(_close_result)
            raise

    async def now(self, work: Callable[..., T], *arguments: object) -> T:
        return await asyncio.wrap_future(self._threads.submit(self._owner, partial(work, *arguments)))

    def later(self, work: Callable[[], None]) -> None:
        """In its turn, without anybody waiting: also when the caller is being cancelled, or the engine has closed."""
        try:
            self._threads.submit(self._owner, work)
        except RuntimeError:
            work()

    def _with_tree(self, work: Callable[..., T], *arguments: object) -> Callable[[], T]:
        tree = ConfinedTree(os.dup(self._root))

        def done() -> T:
            with tree:
                return work(tree, *arguments)

        return done


def _close_result(making: Future[C]) -> None:
    if not making.cancelled() and making.exception() is None:
        making.result().close()


class FilePieces:
    """The bytes of an open file, and everything that is open for them until it is closed."""

    def __init__(self, run: VolumeWork, file: FoundFile, stack: AsyncExitStack) -> None:
        self._run = run
        self._file = file
        self._stack = stack

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        with explained("read", self._file.entry.path):
            piece = await self._run.now(self._file.read)
        if not piece:
            await self.aclose()
            raise StopAsyncIteration
        return piece

    async def aclose(self) -> None:
        await self._stack.aclose()


class Packing:
    """A tree on its way out. Its methods may be called by several threads, one after the other."""

    def __init__(self, tree: ConfinedTree, path: VolumePath) -> None:
        self._tree = ConfinedTree(os.dup(tree.fd))
        self._pieces = packed(self._tree, path)
        self._lock = threading.Lock()

    def next_piece(self) -> bytes:
        """Nothing at the end."""
        with self._lock:
            return next_piece(self._pieces)

    def close(self) -> None:
        with self._lock, self._tree:
            self._pieces.close()


class UnpackingInto:
    """An archive on its way into the directory `path`, which is made if it is missing and else stays whose it is."""

    def __init__(self, tree: ConfinedTree, path: VolumePath) -> None:
        fresh = tree.look(path) is None
        tree_files.make_directory(tree, path, VolumeAttributes(), force=True)
        self._tree = ConfinedTree(tree.open(path, os.O_RDONLY | os.O_DIRECTORY), strict=True)
        self._work = Unpacking(self._tree, keep_top=not fresh)
        self._lock = threading.Lock()

    def feed(self, data: bytes) -> None:
        with self._lock:
            self._work.feed(data)

    def finish(self) -> int:
        """How many entries there were. All of it is on the host's disk then."""
        with self._lock:
            self._work.finish()
            sync_filesystem(self._tree.fd)
            return self._work.count

    def close(self) -> None:
        with self._lock, self._tree:
            self._work.close()


async def gathered_pieces(data: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """The same bytes in pieces that are worth a thread's while."""
    gathered = bytearray()
    async for chunk in data:
        gathered += chunk
        if len(gathered) >= _PIECE:
            yield bytes(gathered)
            gathered.clear()
    if gathered:
        yield bytes(gathered)
