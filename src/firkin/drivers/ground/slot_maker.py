"""A helper process that makes slots: namespaces, a wired network, a loop device.

Apart from the server, because only a single-threaded process can do it, and
apart from the launcher, because a slot takes ten times as long as a fork.
It dies with the server; what it made lives by the descriptors it handed over.
"""

from __future__ import annotations

import array
import json
import os
import signal
import socket
import sys
from contextlib import suppress

from firkin.drivers.ground.numbers import SlotNumbers
from firkin.host import disks, firewall, namespaces, netlink, syscalls
from firkin.host.neighbours import hold_neighbours
from firkin.host.nfnetlink import Nfnetlink
from firkin.host.wires import forget_tenant

_MESSAGE = 65536


def main(control: int, parent: int) -> None:
    """Answer ``{"slot": N}`` with the slot's descriptors until the server goes."""
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)
    channel = socket.socket(fileno=control)
    wires, nftables = netlink.Netlink(), Nfnetlink()
    own_network = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    channel.send(b"ready")
    while message := channel.recv(_MESSAGE):
        numbers = SlotNumbers(json.loads(message)["slot"])
        made: list[int] = []
        try:
            # A server that was killed may have left anything by that name or that address.
            forget_tenant(nftables, numbers.interface, numbers.guest_address)
            answer = {"slot": numbers.slot, "loop": _make(numbers, wires, own_network, made)}
        except OSError as error:
            answer = {"slot": numbers.slot, "error": str(error)}
            _close(made)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", made))] if made else []
        channel.sendmsg([json.dumps(answer).encode()], rights)
        _close(made)


def _close(fds: list[int]) -> None:
    for fd in fds:
        with suppress(OSError):
            os.close(fd)


def _make(numbers: SlotNumbers, wires: netlink.Netlink, own_network: int, made: list[int]) -> list[int]:
    made += namespaces.sandbox_namespaces(numbers.first_uid)
    made.append(namespaces.idmap_namespace(numbers.first_uid))
    _wire(numbers, wires, own_network, made[1])
    return list(disks.add_loop_device(numbers.loop))


def _wire(numbers: SlotNumbers, wires: netlink.Netlink, own_network: int, network: int) -> None:
    """A veth pair between the host and the slot, an address on each end, a default route inside.

    Each end is told who the other is, and neither asks: an entry for each address that somebody
    inside makes up would be one of the machine's 1,024, on whichever side of the wire it is.
    """
    hardware = (numbers.host_hardware, numbers.guest_hardware)
    try:
        wires.add_veth(numbers.interface, "eth0", network, hardware=hardware)
    except FileExistsError:  # left by a server that was killed; its other end is nobody's
        wires.delete_link(numbers.interface)
        wires.add_veth(numbers.interface, "eth0", network, hardware=hardware)
    wires.add_address(numbers.interface, numbers.host_address, numbers.prefix)
    firewall.guard_interface(numbers.interface)
    wires.set_up(numbers.interface, asks=False)
    wires.add_neighbour(numbers.interface, numbers.guest_address, numbers.guest_hardware)
    syscalls.setns(network, syscalls.CLONE_NEWNET)
    try:
        _wire_inside(numbers)
    finally:
        syscalls.setns(own_network, syscalls.CLONE_NEWNET)


def _wire_inside(numbers: SlotNumbers) -> None:
    """In the slot's network. What guards it is there before anything can be sent."""
    hold_neighbours(host=numbers.host_address, own=numbers.guest_address)
    for interface in ("default", "eth0"):
        firewall.forbid_ipv6(interface)
    inside = netlink.Netlink()
    inside.set_up("lo")
    inside.add_address("eth0", numbers.guest_address, numbers.prefix)
    inside.set_up("eth0", asks=False)
    inside.add_neighbour("eth0", numbers.host_address, numbers.host_hardware)
    inside.add_default_route(numbers.host_address)
    inside.close()
    _let_orphans_go()


def _let_orphans_go() -> None:
    """What a closed connection has not sent yet is tried three times more, for three seconds, not for minutes.

    Until then the kernel keeps the connection, and the network with it: a next sandbox would inherit both.
    """
    with open("/proc/sys/net/ipv4/tcp_orphan_retries", "w") as file:
        file.write("3")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
