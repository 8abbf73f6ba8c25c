"""The first process of a microVM: kernel modules, the root file system, and then the agent.

Runs from the initramfs, on the agent's own interpreter (`host.agent_bundle`),
so the root file system needs nothing. It never leaves: after `chroot` it *is*
the agent, and what it stands on cannot be reached by any path.

A machine is not born for one sandbox. It is brought to the point where the
agent listens, stored, and woken up many times. So nothing here knows a name or
an address: those come with ``settle``, on every waking.
"""

from __future__ import annotations

import _socket
import errno
import fcntl
import os
import struct
import time
from contextlib import suppress

from firkin.guest import identity
from firkin.guest import syscalls as guest_syscalls
from firkin.guest.agent import Agent
from firkin.guest.spawn import SpawnPlan
from firkin.guest.trunk import Trunk
from firkin.host import syscalls
from firkin.host.syscalls import MS_BIND, MS_MOVE, MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_RDONLY
from firkin.wire import codec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from firkin.guest.connections import Stream
    from firkin.wire.codec import Object

MODULES = "/modules"
UPPER, WORK = "u", "w"  # as `host.disks` lays out a sandbox's disk
TRUNK, RESET = "firkin.trunk", "firkin.reset"
_PORTS = "/sys/class/virtio-ports"
_PORTS_WITHIN_S = 20.0
_OPEN_FILES = 1 << 20
_STRICT = MS_NOSUID | MS_NODEV | MS_NOEXEC
_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_OWN_BOOT_ID = "/dev/.boot-id"
# In centiseconds: a machine that is ended by force loses no more than two seconds of what was written.
_WRITE_SOON = {"dirty_expire_centisecs": b"100", "dirty_writeback_centisecs": b"100"}
_RNDADDENTROPY, _RNDRESEEDCRNG = 0x40085203, 0x5207
_SIOCSIFFLAGS, _SIOCSIFADDR, _SIOCSIFNETMASK, _SIOCADDRT = 0x8914, 0x8916, 0x891C, 0x890B
_FETCHED_AHEAD = 256  # more than virtio-rng.c and hw_random/core.c have: a line of the cache each
_ANY = "0.0.0.0"
_IFF_UP, _RTF_UP, _RTF_GATEWAY = 1, 1, 2


def main() -> NoReturn:
    """Become the agent of this machine. A failure ends the kernel, and with it the machine, with the reason told."""
    for kind, place in (("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys")):
        os.makedirs(place, exist_ok=True)
        syscalls.mount(kind, place, kind)
    _begin_to_draw()
    while os.open("/dev/null", os.O_RDWR) < 2:  # without a console the kernel gives no standard input and output
        pass
    _quieten()
    for name in sorted(os.listdir(MODULES)):
        module = os.open(f"{MODULES}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        with suppress(FileExistsError):
            syscalls.load_module(module)
        os.close(module)
        os.unlink(f"{MODULES}/{name}")
    trunk, reset = _port(TRUNK), _port(RESET)
    _root()
    _set_up_link("lo")
    with suppress(OSError):
        _write("/proc/sys/net/ipv6/conf/all/disable_ipv6", b"1")
    with suppress(OSError):
        _write("/proc/self/oom_score_adj", b"-1000")
    for setting, value in _WRITE_SOON.items():
        _write(f"/proc/sys/vm/{setting}", value)
    os.setsid()
    Machine(trunk, reset).serve()


class Machine:
    """The agent behind its trunk, and what a host may do to the machine as a whole."""

    __slots__ = ("_agent", "_boot_id", "_trunk")

    def __init__(self, trunk: int, reset: int) -> None:
        self._agent = Agent()
        self._boot_id = _own_boot_id()
        self._trunk = Trunk(self._agent.loop, trunk, reset, self._agent.take)

    def serve(self) -> NoReturn:
        self._agent.begin(SpawnPlan(nofile=_OPEN_FILES))
        self._trunk.begin({"settle": self._settle, "clock": self._clock, "flush": self._flush, "about": self._about})
        self._agent.run(_nothing)

    def _settle(self, stream: Stream, args: Object) -> None:
        """Another machine than before: its time, its randomness, its names, its place in the network."""
        _set_clock(codec.integer(args, "epoch_ns"))
        _stir(bytes.fromhex(codec.text(args, "seed")))
        hostname = codec.text(args, "hostname")
        syscalls.sethostname(hostname)
        identity.settle(hostname, machine_id=codec.text(args, "machine_id"), restored=codec.flag(args, "restored"))
        os.pwrite(self._boot_id, codec.text(args, "boot_id").encode() + b"\n", 0)
        address, gateway = codec.text(args, "address", ""), codec.text(args, "gateway", "")
        if address:
            _join_network("eth0", address, codec.text(args, "netmask"), gateway)
        _limit_threads(codec.integer(args, "pids"))
        if codec.flag(args, "hardened"):
            guest_syscalls.prctl(guest_syscalls.PR_SET_NO_NEW_PRIVS, 1)
        self._agent.renew()
        stream.result({"kernel": os.uname().release})

    def _clock(self, stream: Stream, args: Object) -> None:
        """It stood still for a while: only the time is another."""
        _set_clock(codec.integer(args, "epoch_ns"))
        _stir(bytes.fromhex(codec.text(args, "seed")))
        stream.result({})

    def _about(self, stream: Stream, _args: Object) -> None:
        stream.result({"kernel": os.uname().release})

    def _flush(self, stream: Stream, _args: Object) -> None:
        """What was written is on the disk. Nothing else is done meanwhile: it stands still or ends next."""
        os.sync()
        stream.result({})


def _nothing() -> None:
    """Nobody waits to hear that the agent listens: a host asks until it answers."""


def _quieten() -> None:
    """The kernel's messages go nowhere: there is no console to take them, and each would cost time."""
    with suppress(OSError):
        _write("/proc/sys/kernel/printk", b"1 1 1 1")


def _port(name: str) -> int:
    """The serial port of that name. It shows up, and can be opened, some time after its driver is there."""
    until = time.monotonic() + _PORTS_WITHIN_S
    while True:
        try:
            for port in os.listdir(_PORTS):
                with open(f"{_PORTS}/{port}/name", "rb", buffering=0) as file:
                    if file.read(64).strip() == name.encode():
                        return os.open(f"/dev/{port}", os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            if time.monotonic() > until:
                raise
            if error.errno not in (errno.ENOENT, errno.ENXIO, errno.EBUSY, errno.ENODEV):
                raise
        if time.monotonic() > until:
            raise OSError(errno.ENXIO, f"no serial port is called {name}")
        time.sleep(0.002)


def _root() -> None:
    """The template's files under the sandbox's own disk become ``/``."""
    for place in ("/lower", "/disk", "/root"):
        os.makedirs(place, exist_ok=True)
    root, disk = _disks()
    syscalls.mount(root, "/lower", "erofs", MS_RDONLY)
    syscalls.mount(disk, "/disk", "ext4")
    options = f"lowerdir=/lower,upperdir=/disk/{UPPER},workdir=/disk/{WORK},metacopy=off,redirect_dir=off"
    syscalls.mount("overlay", "/root", "overlay", 0, options)
    for place in ("/dev", "/proc", "/sys"):
        _folder(f"/root{place}")
        syscalls.mount(place, f"/root{place}", None, MS_MOVE)
    for name in ("pts", "shm", "mqueue"):
        os.makedirs(f"/root/dev/{name}", exist_ok=True)
    syscalls.mount("devpts", "/root/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "ptmxmode=0666,mode=0620,gid=5")
    syscalls.mount("tmpfs", "/root/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777")
    with suppress(OSError):
        syscalls.mount("mqueue", "/root/dev/mqueue", "mqueue", _STRICT)
    _links()
    os.chdir("/root")
    syscalls.mount("/root", "/", None, MS_MOVE)
    os.chroot(".")
    os.chdir("/")
    with suppress(OSError):
        syscalls.mount("cgroup2", "/sys/fs/cgroup", "cgroup2", _STRICT)


def _disks() -> tuple[str, str]:
    """The root's image and the sandbox's disk: the first is read-only. Their order is the machine type's."""
    told = {}
    for name in ("vda", "vdb"):
        with open(f"/sys/block/{name}/ro", "rb", buffering=0) as file:
            told[file.read(8).strip() == b"1"] = f"/dev/{name}"
        with suppress(OSError):  # the host's disk has limits of its own, and this wakes a processor again and again
            _write(f"/sys/block/{name}/queue/wbt_lat_usec", b"0")
    return told[True], told[False]


def _folder(path: str) -> None:
    """A hostile image may have a link there: what is mounted over must be a folder of its own."""
    if os.path.islink(path):
        os.unlink(path)
    os.makedirs(path, exist_ok=True)


def _links() -> None:
    for target, name in (("pts/ptmx", "ptmx"), ("/proc/self/fd", "fd"), ("/proc/self/fd/0", "stdin")):
        _link(target, name)
    _link("/proc/self/fd/1", "stdout")
    _link("/proc/self/fd/2", "stderr")


def _link(target: str, name: str) -> None:
    path = f"/root/dev/{name}"
    with suppress(FileNotFoundError):
        os.unlink(path)
    os.symlink(target, path)


def _limit_threads(most: int) -> None:
    """What programs may have, beside what the kernel and the agent have themselves (proc_sys_kernel(5))."""
    with open("/proc/loadavg", "rb", buffering=0) as file:
        own = int(file.read(100).split()[3].partition(b"/")[2])
    _write("/proc/sys/kernel/threads-max", str(most + own).encode())


def _set_clock(epoch_ns: int) -> None:
    time.clock_settime_ns(time.CLOCK_REALTIME, epoch_ns)


def _stir(seed: bytes) -> None:
    """Whoever was woken from the same store would otherwise draw the same numbers (random(4))."""
    device = os.open("/dev/urandom", os.O_RDWR | os.O_CLOEXEC)
    try:
        os.write(device, seed)
        fcntl.ioctl(device, _RNDRESEEDCRNG)
    finally:
        os.close(device)
    with suppress(OSError):  # what the driver of the machine's own source has asked for already is in its memory, too
        source = os.open("/dev/hwrng", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            os.read(source, _FETCHED_AHEAD)
        finally:
            os.close(source)


def _begin_to_draw() -> None:
    """Have the kernel give out random numbers at once: by itself it waits until it has seen enough that is random.

    Nothing that is drawn before `settle`, which stirs what nobody knows into it, is anything but a passing name.
    """
    device = os.open("/dev/urandom", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(device, _RNDADDENTROPY, struct.pack("=ii32x", 256, 32))
    finally:
        os.close(device)


def _own_boot_id() -> int:
    """The kernel keeps the id of its only boot; what is shown in its place is this file, as each waking writes it."""
    shown = os.open(_OWN_BOOT_ID, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444)
    syscalls.mount(_OWN_BOOT_ID, _BOOT_ID, None, MS_BIND)
    os.unlink(_OWN_BOOT_ID)
    return shown


def _join_network(name: str, address: str, netmask: str, gateway: str) -> None:
    """See netdevice(7). First none: that takes the routes of the old address with it, and who its neighbours were.

    A machine may have the address that it had when it was written down, and yet another gateway behind the same one.
    """
    for request, value in ((_SIOCSIFADDR, _ANY), (_SIOCSIFADDR, address), (_SIOCSIFNETMASK, netmask)):
        _ask_network(request, struct.pack("16s16s8x", name.encode(), _place(value)))
    _set_up_link(name)
    any_ = _place(_ANY)
    route = struct.pack("8x16s16s16sH62x", any_, _place(gateway), any_, _RTF_UP | _RTF_GATEWAY)
    with suppress(FileExistsError):
        _ask_network(_SIOCADDRT, route)


def _place(address: str) -> bytes:
    return struct.pack("=H2x4s8x", _socket.AF_INET, _socket.inet_aton(address))


def _set_up_link(name: str) -> None:
    _ask_network(_SIOCSIFFLAGS, struct.pack("16sH22x", name.encode(), _IFF_UP))


def _ask_network(request: int, value: bytes) -> None:
    control = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM)
    try:
        fcntl.ioctl(control.fileno(), request, value)
    finally:
        control.close()


def _write(path: str, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)
