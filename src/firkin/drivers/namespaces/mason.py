"""The mason: lays the ground of sandboxes — limits, disk, overlay — while their launcher still forks them.

A fork of the launcher pays for every page that it touches: five microseconds,
and four kilobytes for as long as the sandbox lives. This process touches its own
pages again and again. So what needs no namespace of the sandbox's is done here,
beside the fork and not after it, and handed to the new process as a descriptor.

It does one thing at a time: whatever may take long (the copy of a captured disk)
is not given to it but done by the sandbox's own process. It holds nothing
between two orders: every descriptor that it did not begin with is closed.
"""

from __future__ import annotations

import array
import os
import socket
import sys
from contextlib import suppress
from typing import Any

from firkin.drivers.boxes import forge, storage
from firkin.drivers.boxes.orders import GROUND, LaunchOrder
from firkin.guest.disguise import overwrite_arguments
from firkin.host import cgroups, syscalls

NAME = b"firkin-mason"


class _Yard:
    """What every ground needs, opened once, and the descriptors that stay open."""

    __slots__ = ("disks", "kept", "trees")

    def __init__(self, channel: socket.socket, trees: cgroups.Trees, disks: int) -> None:
        self.trees = trees
        self.disks = disks
        self.kept = (channel.fileno(), disks, *trees.folders())


def main(control: int, parent: int) -> None:
    """Serve orders on the SEQPACKET socket `control` until the server closes it or dies."""
    channel, setup = forge.begin(control, parent)
    yard = _prepare(channel, setup)
    overwrite_arguments(NAME)
    forge.own_root(setup["scratch"])
    forge.warm_up()
    channel.send(b"ready")
    while (received := forge.receive(channel)) is not None:
        forge.answer(channel, _lay(yard, *received))


def _prepare(channel: socket.socket, setup: dict[str, Any]) -> _Yard:  # the JSON that `LaunchHelper` sends
    trees = cgroups.Trees(cgroups.Layout.from_object(setup["groups"]), setup["label"])
    trees.open()
    return _Yard(channel, trees, os.open(setup["disks"], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))


def _lay(yard: _Yard, order: LaunchOrder, fds: list[int]) -> dict[str, Any]:  # the JSON of an answer
    """Give the overlay to whoever is at the other end of ``ground``, and make the answer."""
    given = dict(zip(GROUND, fds, strict=False))
    step = "limits"
    try:
        yard.trees.make(order.sandbox_id, cgroups.Limits(order.memory_bytes, order.pids, order.vcpus))
        step = "disk"
        disk = storage.make_disk(order, given["image"], yard.disks)
        step = "overlay"
        lowers = [given["base"], *fds[len(GROUND) :]]
        root = storage.overlay(lowers, disk, given["idmap_namespace"], detached=True)
        ground = socket.socket(fileno=os.dup(given["ground"]))
        with ground, suppress(BrokenPipeError):  # who wanted it has ended, and the server knows
            ground.sendmsg([b"+"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [root]))])
    except Exception as error:  # noqa: BLE001 — told to the server; the next order is another's
        failure = forge.explained(step, error)
        return {"id": order.sandbox_id, "failure": [failure.step, failure.code, failure.text]}
    finally:
        syscalls.close_all_but(yard.kept)
    return {"id": order.sandbox_id, "pid": 0}


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
