"""What became of a sandbox: its last record and every change of its state, also after its end."""

from __future__ import annotations

from firkin.engine.node import Node
from firkin.engine.records import JournalEntry
from firkin.law.ids import SandboxId
from firkin.law.sandboxes import SandboxHistory, StateChange
from firkin.law.states import SandboxState


async def history(node: Node, sandbox_id: SandboxId) -> SandboxHistory:
    """See `SandboxControl.history`."""
    resident = node.roster.get(sandbox_id)
    info = resident.info if resident is not None else await node.records.last(sandbox_id)
    if info is None:
        raise await node.roster.absence("explain a sandbox", sandbox_id)
    changes = tuple(_change(entry) for entry in await node.records.journal(sandbox_id))
    recorded = (await node.records.remains(sandbox_id)).peak_memory_bytes
    peak_bytes = max(recorded, node.samples.peak_bytes(sandbox_id))
    return SandboxHistory(info=info, changes=changes, peak_memory_bytes=peak_bytes)


def _change(entry: JournalEntry) -> StateChange:
    return StateChange(
        at=entry.at,
        was=SandboxState(entry.was) if entry.was else None,
        became=entry.became,
        cause=entry.cause,
        actor=entry.actor,
    )
