"""The official SDK, and what is timed around its calls."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from firkin.cli.failures import CommandFailure

ECHO = "echo hi"
WARM_UP = 3


def load_sdk() -> Any:
    """The official package; `CommandFailure` says how to get it."""
    try:
        import e2b
    except ImportError:
        raise CommandFailure("the benchmark drives the official SDK; install it with: pip install e2b") from None
    return e2b


def first_stdout(sandbox: Any, command: str = ECHO) -> float:
    """Run the command; the instant of its first output."""
    seen: list[float] = []
    sandbox.commands.run(command, on_stdout=lambda text: seen.append(time.perf_counter()))
    if not seen:
        raise CommandFailure("the command ended without output")
    return seen[0]


def timed(act: Callable[[], object], times: int, *, warm_up: int = WARM_UP) -> list[float]:
    """Milliseconds of each call."""
    for _ in range(warm_up):
        act()
    values = []
    for _ in range(times):
        began = time.perf_counter()
        act()
        values.append((time.perf_counter() - began) * 1000)
    return values


def first_failure(failed: Sequence[BaseException]) -> str:
    return f"first failure: {type(failed[0]).__name__}: {failed[0]}"[:300] if failed else ""
