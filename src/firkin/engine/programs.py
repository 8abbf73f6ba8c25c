"""What must be remembered of the programs that run, so that their ends can be explained."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from firkin.engine.clock import Clock
from firkin.law.ids import ProcessId, SandboxId
from firkin.law.processes import ById, ProcessInfo, ProcessSelector

MOST_A_SANDBOX = 2048


@dataclass(slots=True, eq=False, kw_only=True)
class Program:
    """`oom_kills` is how many the kernel had killed for memory in the sandbox when it began, as far as was known.

    `told`: its end has been logged. `doomed`: a caller has sent it SIGKILL. `out_of_memory` is the verdict.
    """

    name: str
    tag: str | None
    began: float
    oom_kills: int
    doomed: bool = False
    told: bool = False
    out_of_memory: bool = False


class Programs:
    """Programs by sandbox and process id, of each sandbox the newest `MOST_A_SANDBOX`; and its count of OOM kills."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._known: dict[SandboxId, OrderedDict[ProcessId, Program]] = {}
        self._kills: dict[SandboxId, int] = {}

    def began(self, sandbox_id: SandboxId, info: ProcessInfo, name: str) -> None:
        known = self._known.setdefault(sandbox_id, OrderedDict())
        known.pop(info.id, None)
        known[info.id] = Program(
            name=name, tag=info.tag, began=self._clock.monotonic(), oom_kills=self._kills.get(sandbox_id, 0)
        )
        if len(known) > MOST_A_SANDBOX:
            known.popitem(last=False)

    def get(self, sandbox_id: SandboxId, process_id: ProcessId) -> Program | None:
        """None for one that an earlier server started, or that is forgotten."""
        known = self._known.get(sandbox_id)
        return None if known is None else known.get(process_id)

    def doom(self, sandbox_id: SandboxId, selector: ProcessSelector) -> None:
        """A caller ends it with SIGKILL: whatever else is killed then, this one is not short of memory."""
        if isinstance(selector, ById):
            chosen = [self.get(sandbox_id, selector.id)]
        else:
            chosen = [one for one in self._known.get(sandbox_id, {}).values() if one.tag == selector.tag]
        for program in chosen:
            if program is not None:
                program.doomed = True

    def oom_kills(self, sandbox_id: SandboxId) -> int | None:
        """The count that was seen last; None when none was."""
        return self._kills.get(sandbox_id)

    def saw_oom_kills(self, sandbox_id: SandboxId, count: int) -> int:
        """Remember the count; by how much it has grown. The first count of a sandbox is no growth, nor is a smaller."""
        before = self._kills.get(sandbox_id, count)
        self._kills[sandbox_id] = count
        return max(0, count - before)

    def forget(self, sandbox_id: SandboxId) -> None:
        """The sandbox is gone."""
        self._known.pop(sandbox_id, None)
        self._kills.pop(sandbox_id, None)
