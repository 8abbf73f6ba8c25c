"""The launcher: a `forge` whose children become the agents of their sandboxes, without a program between.

A child first makes what no request changes: limits, disk, namespaces, devices. Then come the root, the rights
that are left, the agent. One that was forked ahead of need waits between the two; nothing of a guest's is in
it yet, and it goes when its server does.

It sees no host path at all. What it becomes is the child of whoever is left when
the server dies, and answers on its own socket.
"""

from __future__ import annotations

import os
import socket
import sys
from contextlib import suppress
from typing import Any, NoReturn

from firkin.drivers.boxes import forge, places, storage, volume_mounts
from firkin.drivers.boxes.orders import PARTS, VOLUMES, LaunchOrder
from firkin.drivers.namespaces import confinement, rehearsal, view
from firkin.guest import identity
from firkin.guest.agent import Agent
from firkin.guest.disguise import overwrite_arguments
from firkin.guest.lookups import look_up
from firkin.guest.rehearsal import rehearse
from firkin.guest.settled_code import settle
from firkin.guest.shared_pages import SharedPages, share
from firkin.guest.spawn import SpawnPlan
from firkin.host import cgroups, syscalls
from firkin.host.syscalls import (
    CLONE_NEWCGROUP,
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUTS,
    MS_PRIVATE,
    MS_REC,
)

NAME = b"firkin-agent"


class Workshop:
    """What every launch needs, opened once: cgroup trees, disks' folder, filter, /proc, the own pid namespace."""

    __slots__ = (
        "agent",
        "detached",
        "disks",
        "last_capability",
        "own_pid_namespace",
        "pages",
        "proc",
        "program",
        "trees",
    )

    def __init__(self, trees: cgroups.Trees, disks: int, program: syscalls.SeccompProgram, detached: bool) -> None:
        self.trees = trees
        self.disks = disks
        self.program = program
        self.detached = detached
        self.agent = Agent()
        self.last_capability = syscalls.last_capability()
        self.pages: SharedPages | None = None
        self.proc = os.open("/proc", os.O_PATH | os.O_CLOEXEC)
        self.own_pid_namespace = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)


def main(control: int, parent: int) -> None:
    """Serve launch orders on the SEQPACKET socket `control` until the server closes it or dies."""
    channel, setup = forge.begin(control, parent)
    workshop = _prepare(setup)
    look_up("firkin")
    rehearse()
    overwrite_arguments(NAME)
    forge.own_root(setup["scratch"])
    rehearsal.rehearse(workshop.trees.layout)
    settle()
    kept = forge.freeze()
    workshop.pages = share(workshop.proc)
    forge.serve(channel, lambda order, fds: _launch(channel, order, fds, workshop))
    kept.clear()


def _prepare(setup: dict[str, Any]) -> Workshop:  # the JSON that `Launcher` sends
    layout = cgroups.Layout.from_object(setup["groups"])
    trees = cgroups.Trees(layout, setup["label"])
    trees.open()
    disks = os.open(setup["disks"], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    with open(setup["filter"], "rb") as file:
        program = syscalls.SeccompProgram(file.read())
    return Workshop(trees, disks, program, setup["detached"])


def _launch(channel: socket.socket, order: LaunchOrder, fds: list[int], workshop: Workshop) -> None:
    try:
        syscalls.unshare(CLONE_NEWPID)
        pid = os.fork()
    except OSError as error:
        failure = ["fork", error.errno, f"cannot fork: {error.strerror}"]
        with suppress(OSError):
            syscalls.setns(workshop.own_pid_namespace, CLONE_NEWPID)
        forge.answer(channel, {"id": order.sandbox_id, "failure": failure})
        return
    if pid == 0:
        channel.close()  # else nobody would see that the launcher has gone
        _become_agent(order, fds, workshop)
    syscalls.setns(workshop.own_pid_namespace, CLONE_NEWPID)
    handle = os.pidfd_open(pid)
    forge.answer(channel, {"id": order.sandbox_id, "pid": pid}, handle)
    os.close(handle)


def _become_agent(order: LaunchOrder, fds: list[int], workshop: Workshop) -> NoReturn:
    """A failure is reported on the report pipe with the step that it happened in."""
    report = fds[0]
    step = forge.steps(traced=order.traced)
    try:
        forge.become_a_child()
        room = _make_room(order, dict(zip(PARTS, fds, strict=False)), workshop, step)
        beside = fds[len(PARTS) :]
        if order.waits:
            if order.furnished:
                _furnish(order, beside, room, workshop, step)
            order, beside = _rest_of(order, report, room, workshop)
            step = forge.steps(traced=order.traced)
        listener, beside = beside[0], beside[1:]
        volumes = beside if order.furnished else _furnish(order, beside, room, workshop, step)
        plan = _move_in(order, room, [listener, report], volumes, workshop, step)
        step[0] = "identity"
        identity.settle(order.hostname, machine_id=order.machine_id, restored=order.restored)
        step[0] = "agent"

        def ready() -> None:
            os.write(report, forge.all_done(step))  # the server gone by now: BrokenPipeError ends this launch
            os.close(report)

        at_rest = workshop.pages.rest if workshop.pages else None
        workshop.agent.serve(listener, spawn=plan, ready=ready, at_rest=at_rest)
    except BaseException as error:  # noqa: BLE001 — the root of this process: report and end
        with suppress(OSError):
            os.write(report, forge.explained(step[0], error).encode())
    os._exit(7)


class _Room:
    """What was made before it was known for whom: the mounted disk, the ways into and out of the users' group."""

    __slots__ = ("disk", "doors", "idmap", "limits", "user")

    def __init__(self, given: dict[str, int], limits: cgroups.Limits, disk: int, doors: cgroups.Doors) -> None:
        self.user, self.idmap = given["user_namespace"], given["idmap_namespace"]
        self.limits = limits
        self.disk = disk
        self.doors = doors


def _make_room(order: LaunchOrder, given: dict[str, int], workshop: Workshop, step: list[str]) -> _Room:
    """As host root; `step` names where we are."""
    trees = workshop.trees
    step[0] = "limits"
    limits = _limits(order)
    trees.make(order.sandbox_id, limits)
    step[0] = "disk"
    # Before this process is in the box: what the host's own file system keeps cached about where the image lies would
    # count as the box's, and hold its memory group in the kernel long after the sandbox has gone.
    disk = storage.make_disk(order, given["image"], workshop.disks)
    step[0] = "box"
    trees.join_box(order.sandbox_id)
    step[0] = "namespaces"
    syscalls.unshare(CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP)
    syscalls.setns(given["network_namespace"], CLONE_NEWNET)
    syscalls.mount("none", "/", None, MS_REC | MS_PRIVATE)
    step[0] = "devices"
    view.prepare(order.first_uid)
    step[0] = "agent's group"
    trees.join_agent(order.sandbox_id)
    return _Room(given, limits, disk, trees.doors(order.sandbox_id))


def _limits(order: LaunchOrder) -> cgroups.Limits:
    return cgroups.Limits(order.memory_bytes, order.pids, order.vcpus)


def _rest_of(order: LaunchOrder, report: int, room: _Room, workshop: Workshop) -> tuple[LaunchOrder, list[int]]:
    """Say that there is a room, and wait for who is to move in. Leaves the host as it was when nobody comes."""
    channel = socket.socket(fileno=report)
    channel.send(b"+")
    rest = forge.receive(channel)
    if rest is None:
        if not order.furnished:  # else the overlay has it
            os.close(room.disk)
        with suppress(OSError):
            os.unlink(f"{order.sandbox_id}.img", dir_fd=workshop.disks)
        workshop.trees.leave(order.sandbox_id)
        os._exit(0)
    channel.detach()
    wanted = _limits(rest[0])
    if wanted != room.limits and (unmet := workshop.trees.resize(order.sandbox_id, wanted)):
        raise OSError("; ".join(unmet))
    return rest


def _furnish(order: LaunchOrder, trees: list[int], room: _Room, workshop: Workshop, step: list[str]) -> list[int]:
    """Change to the template's root over the disk. Takes its base, layers and shared directories; returns the rest."""
    base, trees = trees[0], trees[1:]
    first_volume = order.layers + len(order.shared)
    layers, shared = trees[: order.layers], trees[order.layers : first_volume]
    step[0] = "overlay"
    root = storage.overlay([base, *layers], room.disk, room.idmap, detached=workshop.detached)
    step[0] = "mounts"
    view.assemble(root)
    for tree, path in zip(shared, order.shared, strict=True):
        places.share(storage.idmapped(tree, room.idmap), path)
    for path in order.hidden:
        places.empty(path)
    step[0] = "pivot"  # here, because its time grows with the processes of the whole host
    os.chdir(places.ROOT)
    syscalls.pivot_into_cwd()
    return trees[first_volume:]


def _move_in(
    order: LaunchOrder, room: _Room, keep: list[int], volumes: list[int], workshop: Workshop, step: list[str]
) -> SpawnPlan:
    """From there to a process without a right on the host; the descriptors `keep` stay open."""
    step[0] = VOLUMES
    for tree, (path, read_only) in zip(volumes, order.volumes, strict=True):
        volume_mounts.attach(tree, path, room.idmap, read_only=read_only, root="/")
    step[0] = "confinement"
    syscalls.sethostname(order.hostname)
    enter, leave = room.doors
    pages = workshop.pages.begin(workshop.proc) if workshop.pages else ()
    kept = (*keep, *enter, *leave, *pages)
    confinement.confine(order, room.user, kept, workshop.program, workshop.last_capability)
    return SpawnPlan(enter=enter, leave=leave, nofile=order.nofile, hardened=order.hardened)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
