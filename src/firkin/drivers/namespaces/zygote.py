"""The launcher: a warm, single-threaded process that forks once for each sandbox.

Started by the server as ``python -I -S -B`` with an empty environment. It holds
no secret, sees no host path (its root is an empty tmpfs of its own), imports
everything before the first fork, and collects no garbage afterwards, so that
its pages stay shared with every agent it becomes.

It dies with the server. The sandboxes do not: each is the child of whoever is
left, and answers on its own socket.

Between fork and agent nothing may be imported: after the pivot no module file
can be reached. That includes what Python imports lazily to *report* an error,
which is why `_warm_up` runs one such report beforehand.
"""

from __future__ import annotations

import array
import gc
import json
import os
import select
import signal
import socket
import sys
import traceback
from contextlib import suppress
from typing import Any, NoReturn

from firkin.drivers.namespaces import confinement, storage, view, volume_mounts
from firkin.drivers.namespaces.orders import DESCRIPTORS, VOLUMES, Failure, LaunchOrder
from firkin.guest import identity
from firkin.guest.agent import Agent
from firkin.guest.disguise import overwrite_arguments
from firkin.guest.spawn import SpawnPlan
from firkin.host import cgroups, syscalls
from firkin.host.syscalls import (
    CLONE_NEWCGROUP,
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUTS,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_PRIVATE,
    MS_RDONLY,
    MS_REC,
)

_MESSAGE = 1 << 20
NAME = b"firkin-agent"


class Workshop:
    """What every launch needs, opened once: cgroup trees, the disks' folder, the filter, the own pid namespace."""

    __slots__ = ("agent", "detached", "disks", "last_capability", "own_pid_namespace", "program", "trees")

    def __init__(self, trees: cgroups.Trees, disks: int, program: syscalls.SeccompProgram, detached: bool) -> None:
        self.trees = trees
        self.disks = disks
        self.program = program
        self.detached = detached
        self.agent = Agent()
        self.last_capability = syscalls.last_capability()
        self.own_pid_namespace = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)


def main(control: int, parent: int) -> None:
    """Serve launch orders on the SEQPACKET socket `control` until the server closes it or dies."""
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)
    channel = socket.socket(fileno=control)
    setup = json.loads(channel.recv(_MESSAGE))
    workshop = _prepare(setup)
    overwrite_arguments(NAME)
    _own_root(setup["scratch"])
    _warm_up()
    channel.send(b"ready")
    _serve(channel, workshop)


def _prepare(setup: dict[str, Any]) -> Workshop:  # the JSON that `Launcher` sends
    layout = cgroups.Layout.from_object(setup["groups"])
    trees = cgroups.Trees(layout, setup["label"])
    trees.open()
    disks = os.open(setup["disks"], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    with open(setup["filter"], "rb") as file:
        program = syscalls.SeccompProgram(file.read())
    return Workshop(trees, disks, program, setup["detached"])


def _own_root(scratch: str) -> None:
    """Move into an empty tmpfs: a fork's mount namespace then copies three mounts, none of them the host's."""
    syscalls.unshare(CLONE_NEWNS)
    syscalls.mount("none", "/", None, MS_REC | MS_PRIVATE)
    syscalls.mount("tmpfs", scratch, "tmpfs", MS_NOSUID, "mode=700,size=16m,nr_inodes=8k")
    for name in ("m", "loop", "lower", "disk", "empty"):
        os.mkdir(f"{scratch}/{name}")
    empty_flags = MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_RDONLY
    syscalls.mount("tmpfs", f"{scratch}/empty", "tmpfs", empty_flags, "mode=555,size=4k")
    os.chdir(scratch)
    syscalls.pivot_into_cwd()


def _warm_up() -> None:
    """Run everything once that would import lazily, then freeze the heap."""
    try:
        raise OSError(1, "warm-up")
    except OSError:
        traceback.format_exc()
    Failure.decode(Failure("warm-up", 0, "é\udcff").encode())
    gc.collect()
    gc.freeze()
    gc.disable()


def _serve(channel: socket.socket, workshop: Workshop) -> None:
    ended_read, ended_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(ended_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, _nothing)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    waiting = select.poll()
    waiting.register(channel.fileno(), select.POLLIN)
    waiting.register(ended_read, select.POLLIN)
    while True:
        for fd, _ in waiting.poll():
            if fd == ended_read:
                _reap(ended_read)
            elif not _launch_next(channel, workshop):
                return


def _nothing(number: int, frame: object) -> None:
    """A handler must exist for the wake-up descriptor to be written."""


def _reap(ended: int) -> None:
    with suppress(BlockingIOError):
        os.read(ended, 4096)
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _launch_next(channel: socket.socket, workshop: Workshop) -> bool:
    message, ancillary, _, _ = channel.recvmsg(_MESSAGE, 4096, socket.MSG_CMSG_CLOEXEC)
    if not message:
        return False
    received = array.array("i")
    for _, _, data in ancillary:
        received.frombytes(data)
    fds = list(received)
    order = LaunchOrder.decode(message)
    try:
        syscalls.unshare(CLONE_NEWPID)
        pid = os.fork()
    except OSError as error:
        answer: dict[str, str | int] = {"id": order.sandbox_id, "error": f"cannot fork: {error.strerror}"}
        beside: list[int] = []
        with suppress(OSError):
            syscalls.setns(workshop.own_pid_namespace, CLONE_NEWPID)
    else:
        if pid == 0:
            _become_agent(order, fds, workshop)
        syscalls.setns(workshop.own_pid_namespace, CLONE_NEWPID)
        handle = os.pidfd_open(pid)
        answer, beside = {"id": order.sandbox_id, "pid": pid}, [handle]
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", beside))] if beside else []
    channel.sendmsg([json.dumps(answer).encode()], rights)
    for fd in (*fds, *beside):
        os.close(fd)
    return True


def _become_agent(order: LaunchOrder, fds: list[int], workshop: Workshop) -> NoReturn:
    """A failure is reported on the report pipe with the step that it happened in."""
    given = dict(zip(DESCRIPTORS, fds, strict=False))
    step = ["start"]
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        plan = _set_up(order, given, fds[len(DESCRIPTORS) :], workshop, step)
        step[0] = "identity"
        identity.settle(order.hostname, machine_id=order.machine_id, restored=order.restored)
        step[0] = "agent"
        report = given["report"]

        def ready() -> None:
            os.write(report, b"+")  # the server gone by now: BrokenPipeError ends this launch
            os.close(report)

        workshop.agent.serve(given["listener"], spawn=plan, ready=ready)
    except BaseException as error:  # noqa: BLE001 — the root of this process: report and end
        text = traceback.format_exc() if not isinstance(error, OSError) else str(error)
        with suppress(OSError):
            os.write(given["report"], Failure(step[0], getattr(error, "errno", 0) or 0, text).encode())
    os._exit(7)


def _set_up(
    order: LaunchOrder, given: dict[str, int], beside: list[int], workshop: Workshop, step: list[str]
) -> SpawnPlan:
    """The whole road from host root to an empty room, in order; `step` names where we are."""
    trees = workshop.trees
    first_volume = order.layers + len(order.shared)
    layers, shared, volumes = beside[: order.layers], beside[order.layers : first_volume], beside[first_volume:]
    step[0] = "limits"
    trees.make(order.sandbox_id, cgroups.Limits(order.memory_bytes, order.pids, order.vcpus))
    trees.join_box(order.sandbox_id)
    step[0] = "disk"
    disk = storage.make_disk(order, given["image"], workshop.disks)
    step[0] = "namespaces"
    syscalls.unshare(CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP)
    syscalls.setns(given["network_namespace"], CLONE_NEWNET)
    syscalls.mount("none", "/", None, MS_REC | MS_PRIVATE)
    syscalls.sethostname(order.hostname)
    step[0] = "overlay"
    lowers = [given["base"], *layers]
    root = storage.overlay(lowers, disk, given["idmap_namespace"], detached=workshop.detached)
    step[0] = "mounts"
    view.assemble(root, order.first_uid)
    for tree, path in zip(shared, order.shared, strict=True):
        view.share(storage.idmapped(tree, given["idmap_namespace"]), path)
    for path in order.hidden:
        view.empty(path)
    step[0] = VOLUMES
    for tree, (path, read_only) in zip(volumes, order.volumes, strict=True):
        volume_mounts.attach(tree, path, given["idmap_namespace"], read_only=read_only)
    step[0] = "agent's group"
    trees.join_agent(order.sandbox_id)
    enter, leave = trees.doors(order.sandbox_id)
    step[0] = "pivot"
    os.chdir(view.ROOT)
    syscalls.pivot_into_cwd()
    step[0] = "confinement"
    keep = (given["listener"], given["report"], *enter, *leave)
    confinement.confine(order, given["user_namespace"], keep, workshop.program, workshop.last_capability)
    return SpawnPlan(enter=enter, leave=leave, nofile=order.nofile, hardened=order.hardened)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
