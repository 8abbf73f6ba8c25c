"""An agent that was executed, not forked: it is given a listening socket and told who it is.

For roots in which something else than a launcher of ours starts PID 1. What it
has to know comes on descriptor `ORDER`, as JSON to its end, and only when all
that is outside of it is ready: until then it does nothing.
"""

from __future__ import annotations

import json
import os

from firkin.guest import identity, syscalls
from firkin.guest.agent import Agent
from firkin.guest.disguise import overwrite_arguments
from firkin.guest.spawn import SpawnPlan

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

ORDER = 3
NAME = b"firkin-agent"
_MOST = 1 << 16


def main() -> None:
    """Become the agent, for ever. The order names the descriptors that were passed beside it."""
    agent = Agent()
    order = _order()
    overwrite_arguments(NAME)
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
    identity.settle(order["hostname"], machine_id=order["machine_id"], restored=order["restored"])
    report = order["report"]

    def ready() -> None:
        os.write(report, b"+")
        os.close(report)

    plan = SpawnPlan(
        enter=tuple(order["enter"]), leave=tuple(order["leave"]), nofile=order["nofile"], hardened=order["hardened"]
    )
    _silence()
    agent.serve(order["listener"], spawn=plan, ready=ready)


def _order() -> dict[str, Any]:  # JSON that a driver of ours wrote
    text = b""
    while piece := os.read(ORDER, _MOST):
        text += piece
    os.close(ORDER)
    order: dict[str, Any] = json.loads(text)
    return order


def _silence() -> None:
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)
