"""What a change of a sandbox's state is called outside, and what is told with it.

The names and fields are E2B's (version 2 of its events). Its service writes the
fields in one spelling and its documentation in another, so each is there in both.
"""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID, uuid5

from firkin.law.events import LifecycleEntry
from firkin.law.resources import MIB
from firkin.law.sandboxes import SandboxInfo
from firkin.law.states import SandboxState

CREATED = "sandbox.lifecycle.created"
KILLED = "sandbox.lifecycle.killed"
PAUSED = "sandbox.lifecycle.paused"
RESUMED = "sandbox.lifecycle.resumed"
UPDATED = "sandbox.lifecycle.updated"
CHECKPOINTED = "sandbox.lifecycle.checkpointed"
EVENT_TYPES = (CREATED, KILLED, PAUSED, RESUMED, UPDATED, CHECKPOINTED)

# Causes of journal entries that leave the state as it was.
DEADLINE_SET = "deadline set: "
SNAPSHOT_MADE = "snapshot made: "
NETWORK_SET = "network set: "

_S = SandboxState
_STATES = {
    CREATED: frozenset({_S.RUNNING}),
    RESUMED: frozenset({_S.RUNNING}),
    PAUSED: frozenset({_S.PAUSED}),
    KILLED: frozenset({_S.STOPPED, _S.FAILED}),
    UPDATED: frozenset({_S.RUNNING, _S.PAUSED}),
    CHECKPOINTED: frozenset({_S.RUNNING, _S.PAUSED}),
}
TOLD_STATES = frozenset[SandboxState]().union(*_STATES.values())
"""The states whose beginning can have a type."""

_LABELS = {
    CREATED: "create",
    KILLED: "kill",
    PAUSED: "pause",
    RESUMED: "resume",
    UPDATED: "update",
    CHECKPOINTED: "checkpoint",
}
_NAMESPACE = UUID("9d1f1c36-6a2b-5d0e-8a0f-6f3c1e0b7a55")


def event_states(event_type: str) -> frozenset[SandboxState]:
    """The states that a change of that type can lead to. `KeyError` for an unknown type."""
    return _STATES[event_type]


def event_type(entry: LifecycleEntry) -> str | None:
    """What the change is called; None for steps on the way (being made, pooled, being stopped, files removed)."""
    if entry.became is entry.was:
        return CHECKPOINTED if entry.cause.startswith(SNAPSHOT_MADE) else UPDATED
    if entry.became is _S.RUNNING:
        return RESUMED if entry.was is _S.PAUSED else CREATED
    if entry.became is _S.PAUSED:
        return PAUSED
    ended = entry.became in (_S.STOPPED, _S.FAILED)
    return KILLED if ended and entry.was not in (_S.CREATING, _S.POOLED) else None


def event_body(entry: LifecycleEntry, info: SandboxInfo | None) -> dict[str, object]:
    """The event as JSON has it. `info` is the sandbox's last record, None when it is forgotten.

    The id is the same each time that the same change is told.
    """
    name = event_type(entry) or f"sandbox.lifecycle.{entry.became.value}"
    number = f"{entry.sandbox_id} {entry.number}"
    fields: dict[str, object] = {
        "sandbox_id": str(entry.sandbox_id),
        "sandbox_execution_id": str(uuid5(_NAMESPACE, entry.sandbox_id)),
        "sandbox_template_id": _template(entry, info),
        "sandbox_build_id": _template(entry, info),
        "sandbox_team_id": entry.owner,
        "event_category": "lifecycle",
        "event_label": _LABELS.get(name, entry.became.value),
        "event_data": _data(entry, info, name),
    }
    return {
        "id": str(uuid5(_NAMESPACE, number)),
        "version": "v2",
        "type": name,
        "timestamp": _timestamp(entry.at),
        **fields,
        **{_other_spelling(key): value for key, value in fields.items()},
    }


def _template(entry: LifecycleEntry, info: SandboxInfo | None) -> str:
    snapshot = None if info is None else info.snapshot_id
    return str(snapshot or entry.template_id or "")


def _data(entry: LifecycleEntry, info: SandboxInfo | None, name: str) -> dict[str, object]:
    data: dict[str, object] = {
        "sandbox_metadata": {} if info is None else dict(info.metadata),
        "cause": entry.cause,
        "actor": entry.actor,
        "number": entry.number,
    }
    if info is not None and entry.run_began is not None and name in (KILLED, PAUSED):
        data["execution"] = _execution(entry, info, entry.run_began)
    return data


def _execution(entry: LifecycleEntry, info: SandboxInfo, began: datetime) -> dict[str, object]:
    """The run that the change ended; its time is in milliseconds."""
    return {
        "started_at": _timestamp(began),
        "vcpu_count": info.resources.vcpus,
        "memory_mb": info.resources.memory_bytes // MIB,
        "execution_time": max(0, int((entry.at - began).total_seconds() * 1000)),
    }


def _other_spelling(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


def _timestamp(when: datetime) -> str:
    return when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
