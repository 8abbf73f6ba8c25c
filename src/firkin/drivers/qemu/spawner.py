"""The launcher of microVMs: a small, single-threaded process that forks, confines the fork, and makes it QEMU.

Started by the server as ``python -I -S -B`` with an empty environment; it dies with
the server, the machines do not. Who breaks out of a machine is in QEMU, so that
is where the walls are: an id that owns nothing, no capability and none to be
had, no_new_privs, QEMU's own system call filter, namespaces of its own with an
empty network, and a root in which there is /usr, read-only, and nothing of the
host's. Disks, memory and sockets are descriptors that were opened before.

The machine's network is a tap in the slot's network namespace, joined to the
wire by routing: the wire's end gives its address to the guest and answers for
it. So the firewall sees the address that it knows, whatever is behind it.
"""

from __future__ import annotations

import array
import fcntl
import json
import os
import resource
import signal
import socket
import stat
import struct
import sys
from contextlib import suppress
from typing import Any, NoReturn

from firkin.drivers.ground.numbers import SlotNumbers
from firkin.host import cgroups, netlink, syscalls
from firkin.host.syscalls import (
    ATTR_NODEV,
    ATTR_NOSUID,
    ATTR_RDONLY,
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
    MS_REC,
)

TAP = "tap0"
_MESSAGE = 1 << 20
_TUNSETIFF = 0x400454CA
_TUNSETVNETHDRSZ = 0x400454D8
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
_VNET_HEADER = 12  # of virtio 1: mergeable buffers
_SHOWN = ("/usr", "/etc/ld.so.cache")
_LINKS = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_NODES = (("null", 1, 3), ("zero", 1, 5), ("random", 1, 8), ("urandom", 1, 9), ("tun", 10, 200))
_KVM = (10, 232)
_STRICT = MS_NOSUID | MS_NODEV | MS_NOEXEC
# Last what a guest's own frames cannot do then: have more neighbours noted than its own address, which is the only one
# that is routed to it. Of `all` and the interface's setting the kernel takes the greater one.
_NETWORK_SETTINGS = {
    "ip_forward": "1",
    "conf/eth0/proxy_arp": "1",
    f"conf/{TAP}/proxy_arp": "1",
    "neigh/eth0/proxy_delay": "0",
    f"neigh/{TAP}/proxy_delay": "0",
    **{
        f"conf/{name}/{key}": value for name in ("all", TAP) for key, value in (("rp_filter", "1"), ("arp_accept", "0"))
    },
}


def main(control: int, parent: int) -> None:
    """Serve launch orders on the SEQPACKET socket `control` until the server closes it or dies."""
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)
    channel = socket.socket(fileno=control)
    setup = json.loads(channel.recv(_MESSAGE))
    trees = cgroups.Trees(cgroups.Layout.from_object(setup["groups"]), setup["label"])
    trees.open()
    own = {kind: os.open(f"/proc/self/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC) for kind in ("net", "pid")}
    _own_root(setup["scratch"])
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    channel.send(b"ready")
    while True:
        message, ancillary, _, _ = channel.recvmsg(_MESSAGE, 4096, socket.MSG_CMSG_CLOEXEC)
        if not message:
            return
        fds = array.array("i")
        for _, _, data in ancillary:
            fds.frombytes(data)
        answer, beside = _launch(json.loads(message), list(fds), trees, own)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", beside))] if beside else []
        channel.sendmsg([json.dumps(answer).encode()], rights)
        for fd in (*fds, *beside):
            os.close(fd)


def _own_root(scratch: str) -> None:
    """A root of its own, with what QEMU needs of the host and nothing else; every machine gets a copy of it."""
    syscalls.unshare(CLONE_NEWNS)
    syscalls.mount("none", "/", None, MS_REC | MS_PRIVATE)
    trees = {path: syscalls.open_tree(path) for path in _SHOWN if os.path.exists(path)}
    links = {name: os.readlink(f"/{name}") for name in _LINKS if os.path.islink(f"/{name}")}
    syscalls.mount("tmpfs", scratch, "tmpfs", MS_NOSUID, "mode=755,size=1m,nr_inodes=256")
    os.chdir(scratch)
    for name in ("usr", "etc", "dev", "proc"):
        os.mkdir(name)
    for path, tree in trees.items():
        syscalls.mount_setattr(tree, ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV)
        if path.startswith("/etc/"):
            os.close(os.open(path.lstrip("/"), os.O_CREAT | os.O_WRONLY))
        syscalls.move_mount(tree, path.lstrip("/"))
        os.close(tree)
    for name, target in links.items():
        os.symlink(target, name)
    for name, major, minor in _NODES:
        os.mknod(f"dev/{name}", stat.S_IFCHR | 0o600, os.makedev(major, minor))
        if name != "tun":
            os.chmod(f"dev/{name}", 0o666)
    os.mknod("dev/kvm", stat.S_IFCHR | 0o600, os.makedev(*_KVM))
    syscalls.pivot_into_cwd()
    syscalls.mount("proc", "/proc", "proc", _STRICT)


def _launch(
    order: dict[str, Any], fds: list[int], trees: cgroups.Trees, own: dict[str, int]
) -> tuple[dict[str, str | int], list[int]]:
    """The answer, and the process's descriptor beside it."""
    step = "network"
    tap = -1
    network, given = fds[0], fds[1:]
    try:
        numbers = SlotNumbers(order["slot"])
        tap = _tap(network, numbers, own["net"])
        if order["kvm"]:  # on all copies of this root at once, and only where machines need it
            os.chmod("/dev/kvm", 0o666)
        step = "limits"
        trees.make(order["id"], cgroups.Limits(order["memory_bytes"], order["pids"], order["vcpus"]))
        step = "fork"
        report, said = os.pipe2(os.O_CLOEXEC)
        syscalls.unshare(CLONE_NEWPID)
        try:
            pid = os.fork()
        finally:
            if os.getpid() != 1:
                syscalls.setns(own["pid"], CLONE_NEWPID)
        if pid == 0:
            os.close(report)
            _become(order, {**dict(zip(order["places"], given, strict=True)), order["tap"]: tap}, trees, said)
        os.close(said)
        handle = os.pidfd_open(pid)
        complaint = os.read(report, 4096).decode(errors="replace")
        os.close(report)
        if complaint:
            os.close(handle)
            return {"id": order["id"], "error": complaint}, []
        return {"id": order["id"], "pid": pid}, [handle]
    except OSError as error:
        return {"id": order["id"], "error": f"{step}: {error}"}, []
    finally:
        if tap >= 0:
            os.close(tap)


def _tap(network: int, numbers: SlotNumbers, own_network: int, *, device: str = "/dev/tun") -> int:
    """A tap behind the slot's wire; the guest has the address that the wire's end had."""
    syscalls.setns(network, CLONE_NEWNET)
    try:
        tap = os.open(device, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            fcntl.ioctl(tap, _TUNSETIFF, struct.pack("16sH22x", TAP.encode(), _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR))
            fcntl.ioctl(tap, _TUNSETVNETHDRSZ, struct.pack("i", _VNET_HEADER))
            inside = netlink.Netlink()
            try:
                inside.remove_address("eth0", numbers.guest_address, numbers.prefix)
                inside.set_up(TAP)
                inside.add_neighbour("eth0", numbers.host_address, numbers.host_hardware)  # it went with the address
                inside.add_route("eth0", numbers.host_address)
                inside.add_route(TAP, numbers.guest_address)
                inside.add_default_route(numbers.host_address)
            finally:
                inside.close()
            for name, value in _NETWORK_SETTINGS.items():
                with open(f"/proc/sys/net/ipv4/{name}", "w") as file:
                    file.write(value)
        except BaseException:
            os.close(tap)
            raise
        return tap
    finally:
        syscalls.setns(own_network, CLONE_NEWNET)


def _become(order: dict[str, Any], places: dict[int, int], trees: cgroups.Trees, said: int) -> NoReturn:
    """A failure is told on `said`; success closes it."""
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        trees.join_box(order["id"])
        trees.join_agent(order["id"])
        os.setsid()
        syscalls.unshare(CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWNET | CLONE_NEWCGROUP)
        syscalls.mount("none", "/", None, MS_REC | MS_PRIVATE)
        syscalls.mount("proc", "/proc", "proc", _STRICT)
        said = _arrange(places, said)
        for limit, wanted in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, order["file_bytes"])):
            resource.setrlimit(limit, (wanted, wanted))
        os.umask(0o077)
        os.setgroups([])
        os.setresgid(order["uid"], order["uid"], order["uid"])
        syscalls.drop_bounding_set()
        os.setresuid(order["uid"], order["uid"], order["uid"])
        syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
        if not order["kvm"]:  # translated code is asked for by huge pages, which are half empty
            syscalls.prctl(syscalls.PR_SET_THP_DISABLE, 1)
        # the name of a program, or the descriptor of one that becomes a process that was pictured
        os.execve(order["program"], order["argv"], {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"})
    except BaseException as error:  # noqa: BLE001 — the root of this process: report and end
        with suppress(OSError):
            os.write(said, (str(error) or type(error).__name__).encode())
    os._exit(7)


def _arrange(places: dict[int, int], said: int) -> int:
    """Each descriptor at the number that the command line names, and no other; `said` wherever there is room."""
    high = max(places) + 1
    moved = {place: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, high) for place, fd in places.items()}
    said = fcntl.fcntl(said, fcntl.F_DUPFD_CLOEXEC, high)
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for fd in (0, 1):
        os.dup2(null, fd)
    for place, fd in moved.items():
        os.dup2(fd, place)
    syscalls.close_all_but((0, 1, 2, said, *places))
    return said


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
