"""How callers see the machine of one node, and steer what it takes."""

from __future__ import annotations

from typing import Protocol

from firkin.law.policies import Capacity
from firkin.law.pressure import NodeStatus


class NodeControl(Protocol):
    async def status(self) -> NodeStatus:
        """How the node is: pressed or not and why, what is free, who waits for room."""
        ...

    async def capacity(self) -> Capacity: ...

    async def limit(self, capacity: Capacity) -> NodeStatus:
        """Other limits and floors from now on, until the end of the server. What was promised stands."""
        ...

    async def drain(self) -> None:
        """The server is about to end: whoever waits for room is refused now, and nobody waits any more."""
        ...
