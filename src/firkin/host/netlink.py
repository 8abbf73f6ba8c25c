"""The few rtnetlink messages that wiring a sandbox takes: links, addresses, routes.

Spoken directly, because spawning `ip` costs 7 ms for what takes under one.
Formats: rtnetlink(7), linux/if_link.h, linux/veth.h.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
from dataclasses import astuple, dataclass

from firkin.host.nfnetlink import attribute, attributes

_ACK, _REQUEST, _CREATE, _EXCLUSIVE, _REPLACE = 0x4, 0x1, 0x400, 0x200, 0x100
_NEWLINK, _DELLINK, _GETLINK, _NEWADDR, _DELADDR, _NEWROUTE, _NEWNEIGH = 16, 17, 18, 20, 21, 24, 28
_ERROR = 2
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_LINKINFO, _IFLA_STATS64, _IFLA_GROUP, _IFLA_NET_NS_FD = 1, 3, 18, 23, 27, 28
_LINK_HEAD = 16
_INFO_KIND, _INFO_DATA, _VETH_PEER = 1, 2, 1
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_RTA_DESTINATION, _RTA_OIF, _RTA_GATEWAY = 1, 4, 5
_NDA_DESTINATION, _NDA_HARDWARE, _PERMANENT = 1, 2, 0x80
_IFF_UP, _IFF_NOARP = 1, 0x80
_TABLE_MAIN, _PROTOCOL_STATIC, _SCOPE_UNIVERSE, _SCOPE_LINK, _UNICAST = 254, 4, 0, 253, 1


@dataclass(frozen=True, slots=True)
class Traffic:
    """What went through a link since it was made, as seen from this end of it."""

    packets_received: int = 0
    packets_sent: int = 0
    bytes_received: int = 0
    bytes_sent: int = 0

    def as_text(self) -> str:
        return " ".join(map(str, astuple(self)))

    @classmethod
    def of_text(cls, text: str) -> Traffic:
        """What `as_text` wrote; nothing for anything else."""
        numbers = [int(word) for word in text.split() if word.isdigit()]
        return cls(*numbers) if len(numbers) == 4 else cls()

    def since(self, before: Traffic) -> Traffic:
        return Traffic(*(now - then for now, then in zip(astuple(self), astuple(before), strict=True)))


class Netlink:
    """A netlink socket in the network namespace in which it is made. Thread-safe."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._sequence = 0
        self._lock = threading.Lock()

    def close(self) -> None:
        self._socket.close()

    def add_veth(self, name: str, peer: str, peer_namespace: int, *, hardware: tuple[bytes, bytes]) -> None:
        """A pair: `name` here, `peer` in the namespace of that descriptor, with the `hardware` addresses of both.

        Said at once, so that udev takes them for chosen ones and gives the pair no others.
        """
        inner = _link(0, 0) + _text(_IFLA_IFNAME, peer) + attribute(_IFLA_ADDRESS, hardware[1])
        inner += attribute(_IFLA_NET_NS_FD, struct.pack("=I", peer_namespace))
        data = attribute(_INFO_DATA, attribute(_VETH_PEER, inner))
        info = attribute(_IFLA_LINKINFO, _text(_INFO_KIND, "veth") + data)
        named = _text(_IFLA_IFNAME, name) + attribute(_IFLA_ADDRESS, hardware[0])
        self._ask(_NEWLINK, _CREATE | _EXCLUSIVE, _link(0, 0) + named + info)

    def delete_link(self, name: str) -> None:
        """Remove the link; no error if there is none."""
        try:
            self._ask(_DELLINK, 0, _link(0, 0) + _text(_IFLA_IFNAME, name))
        except OSError as error:
            if error.errno != 19:  # ENODEV
                raise

    def set_up(self, name: str, *, asks: bool = True) -> None:
        """Without `asks`, ARP is neither asked nor heard there: who is a neighbour is said by `add_neighbour`."""
        self._ask(_NEWLINK, 0, _link(0, _IFF_UP if asks else _IFF_UP | _IFF_NOARP) + _text(_IFLA_IFNAME, name))

    def set_group(self, name: str, group: int) -> None:
        wanted = attribute(_IFLA_GROUP, struct.pack("=I", group))
        self._ask(_NEWLINK, 0, _link(0, 0) + _text(_IFLA_IFNAME, name) + wanted)

    def traffic(self, name: str) -> Traffic:
        body = self._ask(_GETLINK, 0, _link(0, 0) + _text(_IFLA_IFNAME, name))
        found = next(value for kind, value in attributes(body[_LINK_HEAD:]) if kind == _IFLA_STATS64)
        return Traffic(*struct.unpack_from("=QQQQ", found))

    def add_address(self, name: str, address: str, prefix: int) -> None:
        self._ask(_NEWADDR, _CREATE | _EXCLUSIVE, _address(name, address, prefix))

    def remove_address(self, name: str, address: str, prefix: int) -> None:
        """And every route that the address had brought."""
        self._ask(_DELADDR, 0, _address(name, address, prefix))

    def add_neighbour(self, name: str, address: str, hardware: bytes) -> None:
        """For good: it is never asked for, never given up, and not counted among the neighbours of the machine."""
        head = struct.pack("=BxxxiHBB", socket.AF_INET, socket.if_nametoindex(name), _PERMANENT, 0, _UNICAST)
        told = attribute(_NDA_DESTINATION, socket.inet_aton(address)) + attribute(_NDA_HARDWARE, hardware)
        self._ask(_NEWNEIGH, _CREATE | _REPLACE, head + told)

    def add_route(self, name: str, address: str) -> None:
        """That one address is behind that link."""
        head = struct.pack(
            "=BBBBBBBBI", socket.AF_INET, 32, 0, 0, _TABLE_MAIN, _PROTOCOL_STATIC, _SCOPE_LINK, _UNICAST, 0
        )
        link = attribute(_RTA_OIF, struct.pack("=I", socket.if_nametoindex(name)))
        self._ask(_NEWROUTE, _CREATE | _EXCLUSIVE, head + attribute(_RTA_DESTINATION, socket.inet_aton(address)) + link)

    def add_default_route(self, gateway: str) -> None:
        head = struct.pack(
            "=BBBBBBBBI", socket.AF_INET, 0, 0, 0, _TABLE_MAIN, _PROTOCOL_STATIC, _SCOPE_UNIVERSE, _UNICAST, 0
        )
        self._ask(_NEWROUTE, _CREATE | _EXCLUSIVE, head + attribute(_RTA_GATEWAY, socket.inet_aton(gateway)))

    def _ask(self, kind: int, flags: int, body: bytes) -> bytes:
        """Send one request, wait for its acknowledgement; what was told before it. OSError with the kernel's code."""
        with self._lock:
            return self._exchange(kind, flags, body)

    def _exchange(self, kind: int, flags: int, body: bytes) -> bytes:
        self._sequence += 1
        size = 16 + len(body)
        self._socket.send(struct.pack("=IHHII", size, kind, _REQUEST | _ACK | flags, self._sequence, 0) + body)
        told = b""
        while True:
            answer = self._socket.recv(65536)
            size, kind_back, _, sequence, _ = struct.unpack_from("=IHHII", answer)
            if sequence != self._sequence:
                continue
            if kind_back == _ERROR:
                (code,) = struct.unpack_from("=i", answer, 16)
                if code:
                    raise OSError(-code, f"rtnetlink: {os.strerror(-code)}")
                return told
            told = answer[16:size]


def _address(name: str, address: str, prefix: int) -> bytes:
    packed = socket.inet_aton(address)
    head = struct.pack("=BBBBI", socket.AF_INET, prefix, 0, 0, socket.if_nametoindex(name))
    return head + attribute(_IFA_LOCAL, packed) + attribute(_IFA_ADDRESS, packed)


def _link(index: int, flags: int) -> bytes:
    return struct.pack("=BBHiII", socket.AF_UNSPEC, 0, 0, index, flags, flags)


def _text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")
