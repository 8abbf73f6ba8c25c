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

Marks = Mapping[str, FileMark]


class WholeSnapshots:
    """Those of one store, and by which marks their files are known."""

    def __init__(self) -> None:
        self._known: dict[SnapshotId, Marks] = {}
        self._looking: dict[SnapshotId, asyncio.Lock] = {}

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
        async with self._looking.setdefault(snapshot_id, asyncio.Lock()):
            try:
                marks = await asyncio.to_thread(marks_in, directory)
                if marks == self._known.get(snapshot_id):
                    return
                found = await asyncio.to_thread(captured_files.integrity, directory)
            except OSError as error:
                raise damaged(operation, snapshot_id, f"cannot be read ({error.strerror})") from error
            if found != content:
                raise damaged(operation, snapshot_id, "are not what was written")
            self._known[snapshot_id] = marks


def damaged(operation: str, snapshot_id: SnapshotId, how: str) -> SnapshotIntegrityFailure:
    """Without a place on the host: who asked may be a tenant."""
    detail = f"cannot {operation}: snapshot {snapshot_id!r} is damaged: its files {how}; delete it and use another"
    return SnapshotIntegrityFailure(operation, snapshot_id, detail)
