"""Parts of a launch, done before there is one, so that its forks have less to write: see `guest.rehearsal`.

In the launcher's own root, in folders that launches use too. No rights are given up, no group is joined, no device is
bound: what is rehearsed of that is the way to it.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress

from firkin.drivers.boxes import forge, places, rights
from firkin.drivers.boxes.orders import PARTS, LaunchOrder
from firkin.drivers.namespaces import view
from firkin.guest import identity
from firkin.guest.rehearsal import ROUNDS
from firkin.host import cgroups, disks
from firkin.host.syscalls import umount

_NOBODY = 65534
_NAME = "rehearsal"
_GROUPS = "/groups"  # in place of the trees of control groups
_ORDER: dict[str, object] = {
    "sandbox_id": _NAME,
    "slot": 0,
    "first_uid": _NOBODY,
    "loop": [0, 0],
    "continues": False,
    "restored": False,
    "machine_id": "0" * 32,
    "disk_bytes": 1 << 20,
    "memory_bytes": 1 << 29,
    "pids": 512,
    "weighed": True,
    "layers": 1,
    "vcpus": 2,
    "nofile": 1024,
    "hidden": [],
    "hostname": _NAME,
    "hardened": False,
    "shared": [],
    "volumes": [],
    "traced": False,
    "waits": True,
    "furnished": False,
}


def rehearse(layout: cgroups.Layout) -> None:
    """What cannot be done here is rehearsed as far as it comes."""
    roots = {name: f"{_GROUPS}/{root.strip('/')}" for name, root in layout.roots.items()}
    trees = cgroups.Trees(cgroups.Layout(layout.version, roots, layout.controllers), _NAME)
    trees.open()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for _ in range(ROUNDS):
        theirs.send(LaunchOrder(**_ORDER).encode())
        received = forge.receive(ours)
        assert received is not None
        _play(received[0], trees)
    ours.close()
    theirs.close()
    trees.close()


def _play(order: LaunchOrder, trees: cgroups.Trees) -> None:
    step = forge.steps(traced=order.traced)
    step[0] = "limits"
    dict(zip(PARTS, range(len(PARTS)), strict=False))
    limits = cgroups.Limits(order.memory_bytes, order.pids, order.vcpus)
    for rehearsed in (
        lambda: trees.make(order.sandbox_id, limits),  # up to the first limit: no kernel makes its file here
        lambda: trees.join_box(order.sandbox_id),
        lambda: trees.join_agent(order.sandbox_id),
        lambda: trees.doors(order.sandbox_id),
        lambda: _disk(order),
        lambda: view.prepare(order.first_uid),
        lambda: list(rights.limits(order.nofile)),
        lambda: identity.settle(order.hostname, machine_id=order.machine_id, restored=order.restored),
    ):
        with suppress(OSError):
            rehearsed()
    trees.remove(order.sandbox_id)
    for name in ("dev", "proc", "sys"):
        with suppress(OSError):
            umount(f"{places.FRAME}/{name}")


def _disk(order: LaunchOrder) -> None:
    source, image = (os.memfd_create(name, os.MFD_CLOEXEC) for name in ("source", "image"))
    try:
        os.write(source, bytes(4096))
        disks.copy_image(source, image, order.disk_bytes)
    finally:
        os.close(source)
        os.close(image)
