"""Boxes that are made before anybody asks. `ground.shelf` keeps them.

Half made ones are a forked process, limits, a mounted disk, devices. Bare ones have no root yet,
and fit whoever wants a disk of that size. Of templates that were asked for lately there are
furnished ones, whose root is mounted.

Whole ones run already: their agent waits to be told whose they are. They are of
templates that were asked for lately, with the limits that were asked for.
"""

from __future__ import annotations

import array
import asyncio
import os
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

from firkin.drivers.boxes.links import AgentLink
from firkin.drivers.boxes.orders import LaunchOrder
from firkin.drivers.boxes.tier import Ahead
from firkin.drivers.ground.helper_process import HelperDied
from firkin.drivers.ground.launch_helper import Launched
from firkin.drivers.ground.shelf import Bounds
from firkin.drivers.ground.slots import Slot
from firkin.host.meminfo import meminfo
from firkin.law.driver import BootPlan, RootFilesystem
from firkin.law.ids import SandboxId
from firkin.law.resources import GIB, MIB, SandboxResources

LEAST, MOST = 2, 8
_KINDS = 3  # the usual disk without a root, and two templates
_WHOLE_KINDS = 2
_WHOLE_UNASKED_S = 900.0  # each holds tens of megabytes
_HALFS_LAST_STEPS_S = 0.002  # made in less time than its caller takes for a command and a kill
_LEFT_FREE = GIB  # of the host's memory, beside what one holds before anything runs in it
_WHOLE_HOLDS = 128 * MIB


@dataclass(frozen=True, slots=True)
class BoxKind:
    """Boxes of one kind have disks of one size and the same root, or none.

    `furniture` says which, and `beneath` which directories its paths name now: others may get the same
    paths. Whole ones have the same `limits` too. The rest is what the last one that was asked for had.
    """

    disk_bytes: int
    limits: str
    furniture: str
    beneath: tuple[tuple[int, int], ...]
    root: RootFilesystem | None = field(compare=False)
    resources: SandboxResources = field(compare=False)
    online: bool = field(compare=False)

    @classmethod
    def of(
        cls,
        resources: SandboxResources,
        root: RootFilesystem | None = None,
        *,
        online: bool = True,
        whole: bool = False,
    ) -> BoxKind:
        limits, furniture = repr(resources) if whole else "", repr(root) if root else ""
        return cls(resources.disk_bytes, limits, furniture, _beneath(root), root, resources, online)

    def fits(self, resources: SandboxResources, root: RootFilesystem) -> bool:
        if self.disk_bytes != resources.disk_bytes or self.limits not in ("", repr(resources)):
            return False
        return self.root is None or (self.root == root and self.beneath == _beneath(root))


def is_there(kind: BoxKind) -> bool:
    """Whether what it is furnished with is on the host yet: its template may have been deleted, or made anew. Of a
    whole one also whether the host has memory to spare for it."""
    if kind.limits and meminfo("MemAvailable") < _WHOLE_HOLDS + _LEFT_FREE:
        return False
    return kind.beneath == _beneath(kind.root)


def _beneath(root: RootFilesystem | None) -> tuple[tuple[int, int], ...]:
    """Device and inode of each directory; a box that stands on one keeps its inode from being given to another."""
    if root is None:
        return ()
    try:
        return tuple((found.st_dev, found.st_ino) for found in map(os.stat, (root.base, *root.layers)))
    except OSError:
        return ((0, 0),)  # equal to none that is there


def bounds(ahead: Ahead, most: int) -> Bounds:
    match ahead:
        case Ahead.NOTHING:
            return Bounds(least=0, most=0, kinds=1)
        case Ahead.HALF:
            return Bounds(least=LEAST, most=most, kinds=_KINDS, last_steps_s=_HALFS_LAST_STEPS_S)
        case Ahead.WHOLE:
            return Bounds(least=LEAST, most=most, kinds=_WHOLE_KINDS, unasked_s=_WHOLE_UNASKED_S)


class _MadeAhead(ABC):
    """What waits: its process, and whether it lives while nobody has it."""

    __slots__ = ("_taken_over", "_watched", "began", "kind", "launched", "sandbox_id", "slot")

    def __init__(self, sandbox_id: SandboxId, kind: BoxKind, slot: Slot, launched: Launched, began: int) -> None:
        self.sandbox_id = sandbox_id
        self.kind = kind
        self.slot = slot
        self.launched = launched
        self.began = began
        self._taken_over = False
        self._watched = False

    @abstractmethod
    def _tells_its_end(self) -> int:
        """A descriptor that is readable when it has died, and not before while it waits."""

    def watch(self, died: Callable[[], None]) -> None:
        self._watched = True
        asyncio.get_running_loop().add_reader(self._tells_its_end(), died)

    def unwatch(self) -> None:
        if self._watched:
            self._watched = False
            asyncio.get_running_loop().remove_reader(self._tells_its_end())


class Prefork(_MadeAhead):
    """A half made one. `channel` is how its process gets the rest of its order, and says how that went."""

    __slots__ = ("channel",)

    def __init__(
        self,
        sandbox_id: SandboxId,
        kind: BoxKind,
        slot: Slot,
        launched: Launched,
        began: int,
        channel: socket.socket,
    ) -> None:
        super().__init__(sandbox_id, kind, slot, launched, began)
        self.channel = channel

    def fits(self, plan: BootPlan) -> bool:
        return self.kind.fits(plan.resources, plan.root)

    def _tells_its_end(self) -> int:
        """Nobody has ordered anything of it: something on its channel can only be its end."""
        return self.channel.fileno()

    def take_over(self) -> tuple[int, Launched, int]:
        """A descriptor of its reports, its process, and when that began: the caller closes what is to be closed."""
        self._taken_over = True
        return os.dup(self.channel.fileno()), self.launched, self.began

    def give(self, order: LaunchOrder, fds: list[int]) -> None:
        """The rest of its order. `HelperDied`."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
        try:
            self.channel.sendmsg([order.encode()], rights)
        except OSError as error:
            raise HelperDied("a box made ahead") from error
        self.channel.close()

    def close(self) -> None:
        self.channel.close()
        if not self._taken_over:
            self._taken_over = True
            os.close(self.launched.pidfd)


class WholeBox(_MadeAhead):
    """One whose agent runs. It was started with the name that it keeps, and with all that restrains a program."""

    __slots__ = ("link",)

    def __init__(
        self, sandbox_id: SandboxId, kind: BoxKind, slot: Slot, launched: Launched, began: int, link: AgentLink
    ) -> None:
        super().__init__(sandbox_id, kind, slot, launched, began)
        self.link = link

    def fits(self, plan: BootPlan) -> bool:
        """What is mounted in it, and what it may do, cannot be changed any more."""
        as_started = not plan.hardened and not plan.volumes and plan.hostname == self.sandbox_id
        return as_started and self.kind.fits(plan.resources, plan.root)

    def _tells_its_end(self) -> int:
        return self.launched.pidfd

    def take_over(self) -> None:
        """Its process and the way to it are the caller's to close."""
        self._taken_over = True

    def close(self) -> None:
        if not self._taken_over:
            self._taken_over = True
            self.link.close()
            os.close(self.launched.pidfd)
