"""Several retained shells of one sandbox, taken in turn."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from firkin.law.errors import InvalidReason, InvalidSpec
from firkin.law.processes import Command, CommandOutput
from firkin.lifetimes import finish
from firkin.runtime.processes import SandboxProcesses
from firkin.runtime.shell import Shell, ShellOptions

MAX_SHELLS = 256
CLOSE_WITHIN_S = 60.0


class ShellPool:
    """Shells that share the work; each keeps its own directory and variables."""

    def __init__(self, shells: Sequence[Shell]) -> None:
        self._shells = tuple(shells)
        self._next = 0

    @classmethod
    async def open(cls, processes: SandboxProcesses, size: int, options: ShellOptions) -> ShellPool:
        """`size` shells, 1…256. A failure closes those that were opened."""
        if not 1 <= size <= MAX_SHELLS:
            raise InvalidSpec(
                "open a shell pool",
                InvalidReason.INVALID_COMMAND,
                f"a pool of {size} shells is not possible; use 1…{MAX_SHELLS}",
            )
        shells: list[Shell] = []
        try:
            for _ in range(size):
                shells.append(await Shell.open(processes, options))
        except BaseException:
            await finish(cls(shells).close(), within_s=CLOSE_WITHIN_S)
            raise
        return cls(shells)

    @property
    def slots(self) -> tuple[Shell, ...]:
        return self._shells

    def slot(self, index: int) -> Shell | None:
        """The shell of that number, from 0, or None when there is none."""
        return self._shells[index] if 0 <= index < len(self._shells) else None

    def lease(self) -> Shell:
        """The next shell in turn."""
        shell = self._shells[self._next % len(self._shells)]
        self._next += 1
        return shell

    async def run(self, command: Command | str) -> CommandOutput:
        return await self.lease().run(command)

    async def close(self) -> None:
        """Close all, then raise the first error that any had. Idempotent."""
        outcomes = await asyncio.gather(*(shell.close() for shell in self._shells), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()
