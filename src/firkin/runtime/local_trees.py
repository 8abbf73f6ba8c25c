"""Files and folders of this machine as tar streams, and tar streams as files and folders of this machine.

What comes from a volume was put there by programs in sandboxes, so it is unpacked
as a stranger's: nothing leaves the folder, and no setuid bit comes along.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterable, AsyncIterator
from pathlib import Path

from firkin.host.confined import ConfinedTree
from firkin.host.tar_packing import next_piece, packed
from firkin.host.tar_unpacking import TarFault, Unpacking
from firkin.law.errors import IoFailure
from firkin.law.volumes import VolumePath

_PLAIN_BITS = 0o777


async def pieces_of(source: Path, *, name: str = "", owner: tuple[int, int] | None = None) -> AsyncIterator[bytes]:
    """A tar of a folder's content, or of one file, called `name` or as it is. `owner`: whose all of it becomes."""
    try:
        real = await asyncio.to_thread(source.resolve, strict=True)
        whole = real.is_dir()
        with ConfinedTree.at(str(real if whole else real.parent)) as tree:
            path = VolumePath("/" if whole else real.name)
            stream = packed(tree, path, name=name or source.name, owner=owner)
            while piece := await asyncio.to_thread(next_piece, stream):
                yield piece
    except OSError as error:
        raise _failure("read", source, error) from error


async def unpack_into(folder: Path, pieces: AsyncIterable[bytes], *, rename: str = "") -> int:
    """Unpack a tar into `folder`, which is made if it is missing; a single file is called `rename`. How many entries.

    A folder that was there keeps its own owner and mode. Owners of what is made are kept
    when this process may give them. What was unpacked before a failure stays.
    """
    owner = None if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    try:
        there = folder.is_dir()
        folder.mkdir(parents=True, exist_ok=True)
        with ConfinedTree.at(str(folder), strict=True) as tree:
            work = Unpacking(tree, owner=owner, mode_bits=_PLAIN_BITS, rename=rename, keep_top=there)
            try:
                async for piece in pieces:
                    await asyncio.to_thread(work.feed, piece)
                await asyncio.to_thread(work.finish)
            finally:
                work.close()
    except OSError as error:
        raise _failure("write into", folder, error) from error
    except TarFault as fault:
        raise IoFailure("write into", str(folder), str(fault)) from fault
    return work.count


def _failure(what: str, path: Path, error: OSError) -> IoFailure:
    return IoFailure(what, str(path), error.strerror or str(error))
