"""What the node keeps ready and can do without: the seam between admission and the warm pools.

When room is short for active work, spare entries give way first. Whoever keeps
some joins `SpareRoom`; until somebody has, there is none to give up.
"""

from __future__ import annotations

from typing import Protocol


class Spare(Protocol):
    """Entries that are ready and belong to nobody yet."""

    def ready(self) -> int:
        """How many there are now."""
        ...

    def wanted(self) -> int:
        """How many there should be, by the pools' own depths."""
        ...

    def memory_bytes(self) -> int:
        """What those ready take of the machine's memory, as well as that is known; 0 where it is not."""
        ...

    async def give_up(self, count: int, *, because: str) -> int:
        """End up to `count` ready entries, chosen by the pools' own policies; returns how many went.

        Their reservations are released when this returns. An entry that somebody
        is checking out is not ready any more, so it never goes.
        """
        ...

    def room_freed(self) -> None:
        """There may be room for more, and nobody waits for it. What was put off for want of it need not wait."""
        ...

    def hold(self, because: str) -> None:
        """Make no more until `resume`. Those being made may be finished. Idempotent; the last reason counts."""
        ...

    def resume(self) -> None:
        """Make what is missing again. Idempotent."""
        ...


class SpareRoom:
    """All spare there is: a `Spare` over those that joined, asked in the order in which they came.

    `given_up` counts those that had to go since the start.
    """

    def __init__(self) -> None:
        self._members: list[Spare] = []
        self.held: str | None = None
        self.given_up = 0

    def join(self, spare: Spare) -> None:
        """Count on `spare` from now on. One that joins while refilling is held is told so."""
        self._members.append(spare)
        if self.held is not None:
            spare.hold(self.held)

    def ready(self) -> int:
        return sum(spare.ready() for spare in self._members)

    def wanted(self) -> int:
        return sum(spare.wanted() for spare in self._members)

    def memory_bytes(self) -> int:
        return sum(spare.memory_bytes() for spare in self._members)

    async def give_up(self, count: int, *, because: str) -> int:
        gone = 0
        for spare in self._members:
            if gone >= count:
                break
            gone += await spare.give_up(count - gone, because=because)
        self.given_up += gone
        return gone

    def room_freed(self) -> None:
        for spare in self._members:
            spare.room_freed()

    def hold(self, because: str) -> None:
        self.held = because
        for spare in self._members:
            spare.hold(because)

    def resume(self) -> None:
        self.held = None
        for spare in self._members:
            spare.resume()
