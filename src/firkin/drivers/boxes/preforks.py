"""Boxes that are half made before anybody asks: a forked process, limits, a mounted disk, devices.

Bare ones have no root yet, and fit whoever wants a disk of that size. Of templates that were
asked for lately there are furnished ones, whose root is mounted. `ground.shelf` keeps both.
"""

from __future__ import annotations

import array
import asyncio
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, field

from firkin.drivers.boxes.orders import LaunchOrder
from firkin.drivers.ground.helper_process import HelperDied
from firkin.drivers.ground.launch_helper import Launched
from firkin.drivers.ground.shelf import Bounds
from firkin.drivers.ground.slots import Slot
from firkin.law.driver import RootFilesystem
from firkin.law.ids import SandboxId
from firkin.law.resources import SandboxResources

LEAST, MOST = 2, 8
_KINDS = 3  # the usual disk without a root, and two templates


@dataclass(frozen=True, slots=True)
class BoxKind:
    """Boxes of one kind have disks of one size and the same root, or none.

    `furniture` says which, and `beneath` which directories its paths name now: others may get the same
    paths. The rest is what the last one that was asked for had.
    """

    disk_bytes: int
    furniture: str
    beneath: tuple[tuple[int, int], ...]
    root: RootFilesystem | None = field(compare=False)
    resources: SandboxResources = field(compare=False)
    online: bool = field(compare=False)

    @classmethod
    def of(cls, resources: SandboxResources, root: RootFilesystem | None = None, *, online: bool = True) -> BoxKind:
        return cls(resources.disk_bytes, repr(root) if root else "", _beneath(root), root, resources, online)

    def fits(self, resources: SandboxResources, root: RootFilesystem) -> bool:
        return self.disk_bytes == resources.disk_bytes and (
            self.root is None or (self.root == root and self.beneath == _beneath(root))
        )


def is_there(kind: BoxKind) -> bool:
    """Whether what it is furnished with is on the host yet: its template may have been deleted, or made anew."""
    return kind.beneath == _beneath(kind.root)


def _beneath(root: RootFilesystem | None) -> tuple[tuple[int, int], ...]:
    """Device and inode of each directory; a box that stands on one keeps its inode from being given to another."""
    if root is None:
        return ()
    try:
        return tuple((found.st_dev, found.st_ino) for found in map(os.stat, (root.base, *root.layers)))
    except OSError:
        return ((0, 0),)  # equal to none that is there


def bounds(most: int) -> Bounds:
    return Bounds(least=LEAST, most=most, kinds=_KINDS)


class Prefork:
    """One that waits. `channel` is how its process gets the rest of its order, and says how that went."""

    __slots__ = ("_taken_over", "_watched", "began", "channel", "kind", "launched", "sandbox_id", "slot")

    def __init__(
        self,
        sandbox_id: SandboxId,
        kind: BoxKind,
        slot: Slot,
        launched: Launched,
        began: int,
        channel: socket.socket,
    ) -> None:
        self.sandbox_id = sandbox_id
        self.kind = kind
        self.slot = slot
        self.launched = launched
        self.began = began
        self.channel = channel
        self._taken_over = False
        self._watched = False

    def watch(self, died: Callable[[], None]) -> None:
        """Nobody has ordered anything of it: something on its channel can only be its end."""
        self._watched = True
        asyncio.get_running_loop().add_reader(self.channel.fileno(), died)

    def unwatch(self) -> None:
        if self._watched:
            self._watched = False
            asyncio.get_running_loop().remove_reader(self.channel.fileno())

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
