"""The life of a sandbox as one table. Everything that changes a state is here.

stop, kill and delete are three different things: stop asks the programs inside
to end and keeps the files; kill ends them at once and keeps the files; delete
removes what is left. Only a sandbox that no longer runs can be deleted, unless
the caller forces it.

A pooled sandbox was made ahead of need: it runs, belongs to nobody, and is no
caller's to see until it is leased.
"""

from __future__ import annotations

from enum import StrEnum
from types import MappingProxyType

from firkin.law.errors import ResourceKind, WrongState


class SandboxState(StrEnum):
    CREATING = "creating"
    POOLED = "pooled"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPING = "stopping"
    STOPPED = "stopped"
    DELETED = "deleted"
    FAILED = "failed"


class Act(StrEnum):
    """What can happen to a sandbox, by a caller's wish or by itself."""

    READY = "ready"
    POOL = "pool"
    LEASE = "lease"
    PAUSE = "pause"
    RESUME = "resume"
    STOP = "stop"
    STOPPED = "finish stopping"
    KILL = "kill"
    DELETE = "delete"
    FAIL = "fail"


_S = SandboxState

_NEXT = MappingProxyType(
    {
        (_S.CREATING, Act.READY): _S.RUNNING,
        (_S.CREATING, Act.POOL): _S.POOLED,
        (_S.CREATING, Act.FAIL): _S.FAILED,
        (_S.CREATING, Act.KILL): _S.STOPPED,
        (_S.POOLED, Act.LEASE): _S.RUNNING,
        (_S.POOLED, Act.KILL): _S.STOPPED,
        (_S.POOLED, Act.FAIL): _S.FAILED,
        (_S.RUNNING, Act.PAUSE): _S.PAUSED,
        (_S.RUNNING, Act.STOP): _S.STOPPING,
        (_S.RUNNING, Act.KILL): _S.STOPPED,
        (_S.RUNNING, Act.FAIL): _S.FAILED,
        (_S.PAUSED, Act.RESUME): _S.RUNNING,
        (_S.PAUSED, Act.KILL): _S.STOPPED,
        (_S.PAUSED, Act.FAIL): _S.FAILED,
        (_S.STOPPING, Act.STOPPED): _S.STOPPED,
        (_S.STOPPING, Act.KILL): _S.STOPPED,
        (_S.STOPPING, Act.FAIL): _S.FAILED,
        (_S.STOPPED, Act.STOP): _S.STOPPED,
        (_S.STOPPED, Act.KILL): _S.STOPPED,
        (_S.STOPPED, Act.DELETE): _S.DELETED,
        (_S.FAILED, Act.KILL): _S.FAILED,
        (_S.FAILED, Act.DELETE): _S.DELETED,
        (_S.DELETED, Act.DELETE): _S.DELETED,
    }
)

ALIVE = frozenset({_S.CREATING, _S.POOLED, _S.RUNNING, _S.PAUSED, _S.STOPPING})


def allows(state: SandboxState, act: Act) -> bool:
    return (state, act) in _NEXT


def next_state(sandbox_id: str, state: SandboxState, act: Act) -> SandboxState:
    """The state after `act`; `WrongState` where the table has no such move."""
    try:
        return _NEXT[state, act]
    except KeyError:
        raise WrongState(f"{act.value} sandbox", ResourceKind.SANDBOX, sandbox_id, state.value) from None


class EndCause(StrEnum):
    """Why a sandbox is no longer running. Each end in the journal has exactly one."""

    REQUESTED = "requested"
    DEADLINE = "deadline"
    OUT_OF_MEMORY = "out of memory"
    AGENT_DIED = "agent died"
    CREATE_FAILED = "create failed"
    SERVER_SHUTDOWN = "server shut down with kill-on-exit"
    LOST = "gone when the server started"
    DRIVER_FAILED = "driver failed"
    HOST_RESTARTED = "host restarted"
    DISK_FAILED = "disk failed"
    AGENT_SILENT = "agent did not answer"
