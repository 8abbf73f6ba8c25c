"""The operations on the sandbox as a whole: is it there, what it uses, who it is, how it ends."""

from __future__ import annotations

import os
import time

from firkin.guest.faults import Refused
from firkin.guest.process_operations import end_all
from firkin.wire import codec
from firkin.wire.frames import PROTOCOL

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from firkin.guest.connections import Stream
    from firkin.guest.loop import Loop
    from firkin.guest.process_operations import ProcessOperations
    from firkin.wire.codec import Object

_SIGTERM, _SIGKILL = 15, 9
_KILL_AGAIN_S = 0.05
_KILL_FOR_S = 10.0
_REAPED_A_TURN = 1000


class MachineOperations:
    """`hello` is what every host is greeted with: ``boot`` is new with every agent and with every new identity."""

    __slots__ = ("_ending", "_kill_at", "_loop", "_processes", "hello")

    def __init__(self, loop: Loop, processes: ProcessOperations) -> None:
        self._loop = loop
        self._processes = processes
        self._ending: list[Stream] = []
        self._kill_at = 0.0
        self.hello: Object = {}

    def begin(self) -> None:
        self.hello = {"protocol": PROTOCOL, "boot": os.urandom(16).hex(), "pid": os.getpid()}

    def operations(self) -> dict[str, Callable[[Stream, Object], None]]:
        return {
            "ping": lambda stream, _args: stream.result({}),
            "hello": lambda stream, _args: stream.result(self.hello),
            "usage": self.usage,
            "identity": self.identity,
            "shutdown": self.shutdown,
        }

    def usage(self, stream: Stream, _args: Object) -> None:
        disk = os.statvfs("/")
        stream.result(
            {
                "disk_used": (disk.f_blocks - disk.f_bfree) * disk.f_frsize,
                "disk_total": disk.f_blocks * disk.f_frsize,
                "mem_total": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
                "cpus": len(os.sched_getaffinity(0)),
            }
        )

    def identity(self, stream: Stream, args: Object) -> None:
        hostname, epoch_ns = codec.text(args, "hostname", ""), codec.integer(args, "epoch_ns", 0)
        if epoch_ns:
            time.clock_settime_ns(time.CLOCK_REALTIME, epoch_ns)
        if hostname:
            _set_hostname(hostname)
        self.hello["boot"] = os.urandom(16).hex()
        stream.result({})

    def shutdown(self, stream: Stream, args: Object) -> None:
        grace_s = max(0, codec.integer(args, "grace_ms", 0)) / 1000
        self._processes.closing = True
        self._kill_at = time.monotonic() + grace_s
        self._ending.append(stream)
        if len(self._ending) > 1:
            return
        if grace_s:
            end_all(self._processes.table, _SIGTERM)
        self._loop.after(grace_s, self._kill)
        self.reap()

    def reap(self) -> None:
        """Collect ended children, and see whether that was all."""
        more = self._processes.table.reap(_REAPED_A_TURN)
        if more:
            self._loop.after(0, self.reap)
        if more is not None or not self._ending:
            return
        ending, self._ending = self._ending, []
        for stream in ending:
            stream.result({})

    def _kill(self) -> None:
        if not self._ending:
            return
        now = time.monotonic()
        if now > self._kill_at + _KILL_FOR_S:
            ending, self._ending = self._ending, []
            for stream in ending:
                stream.error(Refused("limit", "some processes could not be killed"))
            return
        if now >= self._kill_at:
            end_all(self._processes.table, _SIGKILL)
        self._loop.after(_KILL_AGAIN_S, self._kill)


def _set_hostname(name: str) -> None:
    fd = os.open("/proc/sys/kernel/hostname", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, os.fsencode(name))
    finally:
        os.close(fd)
