"""A helper that makes a sandbox's mounts, has an OCI runtime start its first process in them, and is gone.

A `forge` whose children run a program each: the mounts are made in a mount
namespace of the child's own, the container's is a copy of it, and with the child
goes the original. What a child does on the way is the same for each runtime but
for `Start`, which runs it and returns the process that stands for the sandbox.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn

from firkin.drivers.boxes import forge, places, storage, volume_mounts
from firkin.drivers.boxes.orders import PARTS, REST, VOLUMES, LaunchOrder
from firkin.drivers.bundles.workplace import AGENT, BUNDLES, furnish
from firkin.guest.disguise import overwrite_arguments
from firkin.host import cgroups, syscalls
from firkin.host.agent_bundle import PLACE
from firkin.host.syscalls import (
    ATTR_NODEV,
    ATTR_NOSUID,
    ATTR_RDONLY,
    CLONE_NEWNS,
    MS_PRIVATE,
    MS_REC,
    mount_setattr,
    move_mount_onto,
    open_tree,
)

_NAME = b"firkin-carpenter"
_MOST_LOG = 4096
_ABOVE_PASSED = 64
_NOTHING = cgroups.Limits(0, 0, 0)
_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}


class RuntimeFailed(Exception):
    """The runtime ended with an error, or not at all; the text is its own."""


@dataclass(frozen=True, slots=True)
class Workshop:
    """What every child needs, opened once. `setup` is what the tier's `prepare` said."""

    channel: socket.socket
    trees: cgroups.Trees
    disks: int
    setup: dict[str, Any]  # JSON of our own
    extra: cgroups.Limits

    def limits(self, order: LaunchOrder) -> cgroups.Limits:
        memory_bytes, pids = order.memory_bytes + self.extra.memory_bytes, order.pids + self.extra.pids
        return cgroups.Limits(memory_bytes, pids, order.vcpus)


@dataclass(frozen=True, slots=True)
class Site:
    """One sandbox being made: its root is at `places.ROOT`, `folder` is empty and for the runtime's files."""

    order: LaunchOrder
    given: dict[str, int]
    folder: str
    limits: cgroups.Limits

    def write_config(self, config: dict[str, object]) -> None:
        with open(f"{self.folder}/config.json", "x") as file:
            file.write(json.dumps(config))  # ten times as fast as json.dump

    def read_pid(self) -> int:
        with open(f"{self.folder}/pid") as file:
            return int(file.read())


Start = Callable[[Workshop, Site, list[str]], int]
"""Start what is in the box and return the process that stands for it. The list holds the name of the step."""


def main(control: int, parent: int, start: Start, *, extra: cgroups.Limits = _NOTHING) -> None:
    """Serve launch orders on the SEQPACKET socket `control` until the server closes it or dies.

    `extra` is what the runtime's own processes in the box may use beside what was ordered.
    """
    channel, setup = forge.begin(control, parent)
    trees = cgroups.Trees(cgroups.Layout.from_object(setup["groups"]), setup["label"])
    trees.open()
    disks = os.open(setup["disks"], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    overwrite_arguments(_NAME)
    forge.own_root(
        setup["scratch"],
        lambda scratch: furnish(
            scratch, agent=setup["agent"], folders=[setup["runtime_root"]], program=setup["runtime"]
        ),
        mode="755",
    )
    forge.freeze()
    workshop = Workshop(channel, trees, disks, setup, extra)
    under_way: dict[int, str] = {}
    forge.serve(
        channel,
        lambda order, fds: _launch(workshop, order, fds, start, under_way),
        lambda pid, status: _ended(channel, under_way.pop(pid, ""), status),
    )


def _launch(workshop: Workshop, order: LaunchOrder, fds: list[int], start: Start, under_way: dict[int, str]) -> None:
    try:
        pid = os.fork()
    except OSError as error:
        failure = ["fork", error.errno, f"cannot fork: {error.strerror}"]
        forge.answer(workshop.channel, {"id": order.sandbox_id, "failure": failure})
        return
    if pid == 0:
        _make(workshop, order, fds, start)
    under_way[pid] = order.sandbox_id


def _ended(channel: socket.socket, sandbox_id: str, status: int) -> None:
    """A child that was killed has not said how it went."""
    if sandbox_id and status:
        failure = ["start", 0, f"the process that made the sandbox ended with status {status}"]
        forge.answer(channel, {"id": sandbox_id, "failure": failure})


def _make(workshop: Workshop, order: LaunchOrder, fds: list[int], start: Start) -> NoReturn:
    step = ["start"]
    try:
        forge.become_a_child()
        given = dict(zip(PARTS + REST, fds, strict=False))
        site = Site(order, given, f"{BUNDLES}/{order.slot}", workshop.limits(order))
        _build(workshop, site, fds[len(PARTS + REST) :], step)
        pid = start(workshop, site, step)
        handle = os.pidfd_open(pid)
        forge.answer(workshop.channel, {"id": order.sandbox_id, "pid": pid}, handle)
    except BaseException as error:  # noqa: BLE001 — the root of this process: report and end
        failure = forge.explained(step[0], error)
        text = str(error) if isinstance(error, RuntimeFailed) else failure.text
        with suppress(OSError):
            answer = [failure.step, failure.code, text[-_MOST_LOG:]]
            forge.answer(workshop.channel, {"id": order.sandbox_id, "failure": answer})
    os._exit(0)


def _build(workshop: Workshop, site: Site, beside: list[int], step: list[str]) -> None:
    """From the copy of the workplace to a whole root at `places.ROOT`; `step` names where we are."""
    order, given = site.order, site.given
    idmap = given["idmap_namespace"]
    first_volume = order.layers + len(order.shared)
    layers, shared, volumes = beside[: order.layers], beside[order.layers : first_volume], beside[first_volume:]
    step[0] = "limits"
    workshop.trees.make(order.sandbox_id, site.limits)
    step[0] = "namespaces"
    syscalls.unshare(CLONE_NEWNS)
    syscalls.mount("none", "/", None, MS_REC | MS_PRIVATE)
    syscalls.mount("tmpfs", BUNDLES, "tmpfs", 0, "mode=755,size=4m")
    os.mkdir(site.folder, 0o700)
    step[0] = "disk"
    disk = storage.make_disk(order, given["image"], workshop.disks)
    step[0] = "overlay"
    root = storage.overlay([given["base"], *layers], disk, idmap, detached=workshop.setup["detached"])
    step[0] = "mounts"
    syscalls.move_mount(root, places.ROOT)
    os.close(root)
    show_read_only(open_tree(AGENT), PLACE)
    for tree, path in zip(shared, order.shared, strict=True):
        places.share(storage.idmapped(tree, idmap), path)
    for path in order.hidden:
        places.empty(path)
    step[0] = VOLUMES
    for tree, (path, read_only) in zip(volumes, order.volumes, strict=True):
        volume_mounts.attach(tree, path, idmap, read_only=read_only)


def show_read_only(tree: int, path: str) -> None:
    """Attach the detached mount `tree` at `path` below the root, where a directory is made for it."""
    mount_setattr(tree, ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV)
    place = volume_mounts.mount_point(path)
    move_mount_onto(tree, place)
    os.close(place)
    os.close(tree)


def run(argv: list[str], site: Site, *, within_s: float, passed: Sequence[int] = ()) -> None:
    """Run a program to its end, with the descriptors `passed` as 3, 4 and so on. Raises `RuntimeFailed`.

    What it leaves running has a file as its output, never a pipe that somebody would wait for.
    """
    log = os.open(f"{site.folder}/log", os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    wanted = [null, log, log, *passed]
    aside = [_high(fd) for fd in wanted]
    actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(aside)]
    try:
        pid = os.posix_spawn(
            argv[0], argv, {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}, file_actions=actions, setsid=True
        )
        status = _waited(pid, within_s)
        if status != 0:
            why = "did not end in time" if status is None else f"ended with {status}"
            raise RuntimeFailed(f"{os.path.basename(argv[0])} {why}: {_tail(log)}")
    finally:
        for fd in (*aside, log, null):
            os.close(fd)


def _high(fd: int) -> int:
    """A copy with a number that none is to get."""
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _ABOVE_PASSED)


def _waited(pid: int, within_s: float) -> int | None:
    """Its exit code; None, and its end with that of its whole session, when it takes too long."""
    handle = os.pidfd_open(pid)
    try:
        waiting = select.poll()
        waiting.register(handle, select.POLLIN)
        if not waiting.poll(within_s * 1000):
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return None
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    finally:
        os.close(handle)


def _tail(log: int) -> str:
    size = os.fstat(log).st_size
    text = os.pread(log, _MOST_LOG, max(0, size - _MOST_LOG)).decode(errors="replace").strip()
    return text.rpartition("\n")[2] or "it said nothing"
