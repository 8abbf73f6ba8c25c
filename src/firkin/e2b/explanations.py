"""What became of a sandbox, for people: the cause of its end, who wished it, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from firkin.law.logs import LogEntry
from firkin.law.resources import MIB
from firkin.law.sandboxes import PauseMode, SandboxHistory, SandboxInfo, StateChange
from firkin.law.states import EndCause, SandboxState

_ENDS = frozenset({SandboxState.STOPPED, SandboxState.FAILED})
_MACHINE = "its virtual machine"  # as the driver of microVMs says it in the details of an end


def explain(history: SandboxHistory, lines: Sequence[LogEntry]) -> dict[str, Any]:
    """The whole story as JSON. ``summary`` is the story in one or two sentences."""
    info = history.info
    end = _end_of(history)
    return {
        "sandbox_id": str(info.id),
        "state": info.state.value,
        "summary": summary(history),
        "cause": None if info.end_cause is None else info.end_cause.value,
        "detail": info.end_detail,
        "actor": None if end is None else end.actor,
        "owner": info.owner,
        "isolation": None if info.isolation is None else info.isolation.value,
        "driver": info.driver,
        "template_id": None if info.template_id is None else str(info.template_id),
        "snapshot_id": None if info.snapshot_id is None else str(info.snapshot_id),
        "created_at": _time(info.created_at),
        "started_at": _time(info.started_at),
        "paused_at": _time(info.paused_at),
        "deadline_at": _time(info.deadline_at),
        "ended_at": _time(info.ended_at),
        "lived_s": _lived_s(info),
        "peak_memory_bytes": _peak(history),
        "limits": {
            "vcpus": info.resources.vcpus,
            "memory_bytes": info.resources.memory_bytes,
            "disk_bytes": info.resources.disk_bytes,
        },
        "states": [_change(change) for change in history.changes],
        "logs": [_line(line) for line in lines],
    }


def summary(history: SandboxHistory) -> str:
    """What happened and what to do, in plain words."""
    info = history.info
    if info.end_cause is not None:
        return _SENTENCES[info.end_cause](info, _end_of(history))
    if info.state is SandboxState.PAUSED:
        kept = "its files" if info.pause_mode is PauseMode.FILESYSTEM else "its memory and its files"
        return f"It is paused with {kept} kept; connect to it or resume it to go on."
    if info.state is SandboxState.RUNNING:
        until = "until somebody ends it" if info.deadline_at is None else f"until {_clock(info.deadline_at)}"
        return f"It runs {until}; nothing has ended it."
    if info.state is SandboxState.POOLED:
        return "It waits in a warm pool, and is nobody's until a create takes it."
    return f"It is {info.state.value}; ask again in a moment."


def _requested(info: SandboxInfo, end: StateChange | None) -> str:
    who = _who(end)
    detail = f" ({info.end_detail})" if info.end_detail and who not in info.end_detail else ""
    return f"It was ended on purpose by {who}{detail}. Nothing is wrong; create another one if it is needed."


def _deadline(info: SandboxInfo, end: StateChange | None) -> str:
    return (
        f"Its time was over after {_span(_lived_s(info))}. Give the next one a longer timeout, "
        "extend it while it is in use, or let the deadline pause it instead of ending it."
    )


def _out_of_memory(info: SandboxInfo, end: StateChange | None) -> str:
    limit = info.resources.memory_bytes // MIB
    if _MACHINE in info.end_detail:  # inside, its own kernel would have chosen a program to end
        return (
            f"Its virtual machine as a whole, with what runs it, took more memory than its {limit} MiB and what is "
            "allowed beside, and the host's kernel ended it. Create it with more memory, or report this."
        )
    return (
        f"It ran out of memory: all of its {limit} MiB were used, and the kernel ended it. "
        "Create it with more memory, or use less inside."
    )


def _agent_died(info: SandboxInfo, end: StateChange | None) -> str:
    if _MACHINE in info.end_detail:
        return (
            "Its virtual machine ended: something inside switched it off or restarted it, its kernel could not go on, "
            "or the program that ran it was killed on the host. Create another one; use pauses and snapshots in place "
            "of restarts from inside."
        )
    return (
        "The agent inside it ended, and with it every program. If a program inside kills other users' "
        "processes, stop that; otherwise create another one and report this if it happens again."
    )


def _create_failed(info: SandboxInfo, end: StateChange | None) -> str:
    why = f": {info.end_detail}" if info.end_detail else ""
    return f"It could not be made{why}. Mend what is named here, or try again; firkin doctor checks the machine."


def _shutdown(info: SandboxInfo, end: StateChange | None) -> str:
    return (
        "The server was shut down and told to end every sandbox with it. "
        "Start the server without kill-on-exit to let sandboxes outlive it."
    )


def _lost(info: SandboxInfo, end: StateChange | None) -> str:
    return (
        "It was gone when the server started again: its processes had ended while no server watched them. "
        "Create another one; pause it without its memory or make snapshots to keep files over such times."
    )


def _driver_failed(info: SandboxInfo, end: StateChange | None) -> str:
    why = f": {info.end_detail}" if info.end_detail else ""
    return f"The machine could not keep it going{why}. Read the server's log and run firkin doctor."


def _host_restarted(info: SandboxInfo, end: StateChange | None) -> str:
    return (
        "The machine was restarted, which ended every running sandbox on it. "
        "Create another one; what is paused without its memory and snapshots outlive a restart."
    )


def _disk_failed(info: SandboxInfo, end: StateChange | None) -> str:
    return (
        "Its disk could not be read or written any more. Look for disk errors in the machine's kernel log, "
        "and see that the disk below the state folder is sound and not full."
    )


def _agent_silent(info: SandboxInfo, end: StateChange | None) -> str:
    return (
        "Its agent did not answer while it was kept ready in a warm pool, so it was ended before anybody was given it, "
        "and another takes its place. If it happens often, see that nothing the template starts stops or starves the "
        "processes inside, and that the machine is not overloaded (firkin node)."
    )


_SENTENCES: Mapping[EndCause, Callable[[SandboxInfo, StateChange | None], str]] = {
    EndCause.REQUESTED: _requested,
    EndCause.DEADLINE: _deadline,
    EndCause.OUT_OF_MEMORY: _out_of_memory,
    EndCause.AGENT_DIED: _agent_died,
    EndCause.CREATE_FAILED: _create_failed,
    EndCause.SERVER_SHUTDOWN: _shutdown,
    EndCause.LOST: _lost,
    EndCause.DRIVER_FAILED: _driver_failed,
    EndCause.HOST_RESTARTED: _host_restarted,
    EndCause.DISK_FAILED: _disk_failed,
    EndCause.AGENT_SILENT: _agent_silent,
}


def _end_of(history: SandboxHistory) -> StateChange | None:
    """The change with which it no longer ran."""
    if history.info.end_cause is None:
        return None
    ends = [change for change in history.changes if change.became in _ENDS]
    return ends[-1] if ends else None


def _who(end: StateChange | None) -> str:
    if end is None or end.actor in ("", "caller"):
        return "its owner or the operator"
    return "the server" if end.actor == "engine" else end.actor


def _peak(history: SandboxHistory) -> int | None:
    """Samples come every few seconds, so a sandbox that ran out of memory had more than they say: its limit."""
    if history.info.end_cause is EndCause.OUT_OF_MEMORY:
        return max(history.peak_memory_bytes, history.info.resources.memory_bytes)
    return history.peak_memory_bytes or None


def _lived_s(info: SandboxInfo) -> float | None:
    if info.ended_at is None:
        return None
    return round((info.ended_at - (info.started_at or info.created_at)).total_seconds(), 3)


def _span(seconds: float | None) -> str:
    if seconds is None or seconds < 120:
        return f"{seconds or 0:.0f} s"
    minutes, _ = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def _change(change: StateChange) -> dict[str, Any]:
    was = None if change.was is None else change.was.value
    return {
        "at": _time(change.at),
        "was": was,
        "became": change.became.value,
        "cause": change.cause,
        "actor": change.actor,
    }


def _line(line: LogEntry) -> dict[str, Any]:
    level = line.level.name.lower()
    return {
        "timestamp": _time(line.observed_at),
        "level": level,
        "source": line.source.value,
        "message": line.message,
    }


def _time(when: datetime | None) -> str | None:
    return None if when is None else when.isoformat()


def _clock(when: datetime) -> str:
    return when.strftime("%Y-%m-%d %H:%M:%S UTC")
