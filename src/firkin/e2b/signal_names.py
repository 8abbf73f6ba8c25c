"""Signals in the words of the Go runtime, which E2B's clients show to people."""

from __future__ import annotations

_NAMES = (
    "hangup",
    "interrupt",
    "quit",
    "illegal instruction",
    "trace/breakpoint trap",
    "aborted",
    "bus error",
    "floating point exception",
    "killed",
    "user defined signal 1",
    "segmentation fault",
    "user defined signal 2",
    "broken pipe",
    "alarm clock",
    "terminated",
    "stack fault",
    "child exited",
    "continued",
    "stopped (signal)",
    "stopped",
    "stopped (tty input)",
    "stopped (tty output)",
    "urgent I/O condition",
    "CPU time limit exceeded",
    "file size limit exceeded",
    "virtual timer expired",
    "profiling timer expired",
    "window changed",
    "I/O possible",
    "power failure",
    "bad system call",
)


def describe_signal(number: int) -> str:
    """``signal: killed`` for 9."""
    name = _NAMES[number - 1] if 1 <= number <= len(_NAMES) else f"signal {number}"
    return f"signal: {name}"
