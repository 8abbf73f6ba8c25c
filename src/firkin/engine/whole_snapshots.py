"""Whether the files of a snapshot are what was written.

A sandbox that begins from altered files would look like any other, so they are
compared with the digest in the record before they are used. To read them all
takes as long as they are large: it is done at their first use in this server's
life, unless it wrote them itself, and after that only when one of them has
another mark.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

from firkin.engine import captured_files
from firkin.host.file_marks import FileMark, marks_in
from firkin.law.errors import SnapshotIntegrityFailure
from firkin.law.ids import SnapshotId
from firkin.law.snapshots import SnapshotIntegrity
from firkin.lifetimes import Children

Marks = Mapping[str, FileMark]
_READ_AT_ONCE = 2  # of the threads that everything else needs, too


class WholeSnapshots:
    """Those of one store, and by which marks their files are known.

    All who need the same one wait for one reading, which goes on when they leave:
    nobody can have many threads read by asking and leaving.
    """

    def __init__(self, children: Children) -> None:
        self._children = children
        self._known: dict[SnapshotId, Marks] = {}
        self._looking: dict[SnapshotId, asyncio.Task[SnapshotIntegrityFailure | None]] = {}
        self._reading = asyncio.Semaphore(_READ_AT_ONCE)

    def written(self, snapshot_id: SnapshotId, marks: Marks) -> None:
        """Its digest was taken of files with these marks."""
        self._known[snapshot_id] = marks

    def forget(self, snapshot_id: SnapshotId) -> None:
        self._known.pop(snapshot_id, None)
        self._looking.pop(snapshot_id, None)

    async def require(
        self, operation: str, snapshot_id: SnapshotId, directory: Path, content: SnapshotIntegrity
    ) -> None:
        """`SnapshotIntegrityFailure` when what is in `directory` is not `content`, or cannot be read."""
        looking = self._looking.get(snapshot_id)
        if looking is None:
            look = self._look(operation, snapshot_id, directory, content)
            looking = self._looking[snapshot_id] = self._children.start(look, name=f"read snapshot {snapshot_id}")
        if (failure := await asyncio.shield(looking)) is not None:
            raise failure

    async def _look(
        self, operation: str, snapshot_id: SnapshotId, directory: Path, content: SnapshotIntegrity
    ) -> SnapshotIntegrityFailure | None:
        own = asyncio.current_task()
        try:
            marks = await asyncio.to_thread(marks_in, directory)
            if marks == self._known.get(snapshot_id):
                return None
            async with self._reading:
                found = await asyncio.to_thread(captured_files.integrity, directory)
            if found != content:
                return damaged(operation, snapshot_id, "are not what was written")
            if self._looking.get(snapshot_id) is own:  # else it was deleted meanwhile
                self._known[snapshot_id] = marks
            return None
        except OSError as error:
            return damaged(operation, snapshot_id, f"cannot be read ({error.strerror})")
        finally:
            if self._looking.get(snapshot_id) is own:
                del self._looking[snapshot_id]


def damaged(operation: str, snapshot_id: SnapshotId, how: str) -> SnapshotIntegrityFailure:
    """Without a place on the host: who asked may be a tenant."""
    detail = f"cannot {operation}: snapshot {snapshot_id!r} is damaged: its files {how}; delete it and use another"
    return SnapshotIntegrityFailure(operation, snapshot_id, detail)
