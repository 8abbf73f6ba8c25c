"""The files of volumes, from outside: every path confined, every blocking call in a thread.

A thread works on descriptors of its own, so that one whose caller has gone cannot
meet a descriptor that was closed and given to somebody else.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

from firkin.engine.volume_faults import explained
from firkin.engine.volume_registry import VolumeRegistry
from firkin.engine.volume_threads import VolumeThreads
from firkin.engine.volume_work import FilePieces, Packing, UnpackingInto, VolumeWork, gathered_pieces
from firkin.host import tree_files
from firkin.host.tar_unpacking import TarFault
from firkin.host.whole_files import FoundFile, NewFile
from firkin.law.errors import InvalidReason, InvalidSpec, NotFound, ResourceKind
from firkin.law.ids import VolumeId
from firkin.law.volumes import VolumeAttributes, VolumeEntry, VolumePath

MOST_ENTRIES = 50_000
MOST_BYTES = 64 << 20  # of the names and link targets in a list
DEEPEST = 256


class LocalVolumeFiles:
    """The `VolumeFiles` of the engine. `threads` are for this alone: a slow disk holds up nothing else.

    Who only looks and goes before the end is not served to it; what was to be changed is, in any case.
    """

    def __init__(self, registry: VolumeRegistry, threads: VolumeThreads) -> None:
        self._registry = registry
        self._threads = threads

    async def stat(self, volume_id: VolumeId, path: VolumePath) -> VolumeEntry:
        async with self._opened("look at", volume_id, path) as run:
            return await run.looking(lambda tree, _wanted: tree_files.entry_at(tree, path))

    async def list(self, volume_id: VolumeId, path: VolumePath, *, depth: int = 1) -> Sequence[VolumeEntry]:
        if not 1 <= depth <= DEEPEST:
            detail = f"the depth is {depth}; it must be from 1 to {DEEPEST}"
            raise InvalidSpec("list", InvalidReason.INVALID_PATH, detail)
        async with self._opened("list", volume_id, path, missing=False) as run:
            return await run.looking(
                lambda tree, wanted: tree_files.entries_below(
                    tree, path, depth=depth, most=MOST_ENTRIES, most_bytes=MOST_BYTES, wanted=wanted
                )
            )

    async def change(self, volume_id: VolumeId, path: VolumePath, wishes: VolumeAttributes) -> VolumeEntry:
        async with self._opened("change", volume_id, path) as run:
            return await run(tree_files.change, path, wishes)

    async def remove(self, volume_id: VolumeId, path: VolumePath) -> None:
        async with self._opened("remove", volume_id, path) as run:
            await run(tree_files.remove_at, path)

    async def make_directory(
        self, volume_id: VolumeId, path: VolumePath, wishes: VolumeAttributes, *, force: bool = False
    ) -> VolumeEntry:
        async with self._opened("make directory", volume_id, path, missing=False) as run:
            return await run(partial(tree_files.make_directory, force=force), path, wishes)

    async def read(self, volume_id: VolumeId, path: VolumePath) -> tuple[VolumeEntry, AsyncIterator[bytes]]:
        async with AsyncExitStack() as stack:
            run = await stack.enter_async_context(self._opened("read", volume_id, path))
            file = await run.keeping(FoundFile, path)
            stack.callback(run.later, file.close)
            return file.entry, FilePieces(run, file, stack.pop_all())

    async def write(
        self,
        volume_id: VolumeId,
        path: VolumePath,
        data: AsyncIterable[bytes],
        wishes: VolumeAttributes,
        *,
        force: bool = False,
    ) -> VolumeEntry:
        async with self._opened("write", volume_id, path, missing=False) as run:
            file = await run.keeping(partial(NewFile, force=force), path, wishes)
            try:
                async for piece in gathered_pieces(data):
                    await run.now(file.write, piece)
                return await run.now(file.place)
            finally:
                run.later(file.close)

    async def export_tar(self, volume_id: VolumeId, path: VolumePath) -> AsyncIterator[bytes]:
        """`NotFound` before the first piece; what breaks later ends the stream with an error."""
        await self.stat(volume_id, path)
        return self._export(volume_id, path)

    async def _export(self, volume_id: VolumeId, path: VolumePath) -> AsyncIterator[bytes]:
        async with self._opened("export", volume_id, path) as run:
            stream = await run.keeping(Packing, path)
            try:
                while piece := await run.now(stream.next_piece):
                    yield piece
            finally:
                run.later(stream.close)

    async def import_tar(self, volume_id: VolumeId, path: VolumePath, data: AsyncIterable[bytes]) -> int:
        async with self._opened("import into", volume_id, path, missing=False) as run:
            work = await run.keeping(UnpackingInto, path)
            try:
                async for piece in gathered_pieces(data):
                    await run.now(work.feed, piece)
                return await run.now(work.finish)
            except TarFault as fault:
                detail = f"the archive is not usable: {fault}"
                raise InvalidSpec("import", InvalidReason.INVALID_VOLUME, detail) from fault
            finally:
                run.later(work.close)

    @asynccontextmanager
    async def _opened(
        self, operation: str, volume_id: VolumeId, path: VolumePath, *, missing: bool = True
    ) -> AsyncIterator[VolumeWork]:
        """With `missing` a path through something that is no directory is simply not there."""
        owner = self._registry.get(operation, volume_id).owner
        self._threads.check_room(owner)
        async with self._registry.keeper.opened(volume_id) as root:
            with explained(operation, path):
                try:
                    yield VolumeWork(root, self._threads, owner)
                except NotADirectoryError as error:
                    if not missing:
                        raise
                    raise NotFound(operation, ResourceKind.FILE, path) from error
