"""Forgetting the connections of an address (ctnetlink: linux/netfilter/nfnetlink_conntrack.h; Linux 5.8)."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable, Iterator

from firkin.host.nfnetlink import attribute, attributes, nested

_NETLINK_NETFILTER = 12
_SUBSYSTEM = 1 << 8  # NFNL_SUBSYS_CTNETLINK
_GET, _DELETE = _SUBSYSTEM | 1, _SUBSYSTEM | 2
_REQUEST, _ACK, _DUMP = 0x1, 0x4, 0x300
_TUPLE_ORIG, _FILTER = 1, 25
_TUPLE_IP, _IP_V4_SRC, _IP_V4_DST, _FILTER_ORIG_FLAGS = 1, 1, 2, 1
_BY_SOURCE = 1
_NESTED = 0x8000
_ERROR, _DONE = 2, 3
_RECEIVE = 1 << 18
_ANSWER_WITHIN_S = 10.0


def delete_connections(source: str) -> None:
    """Remove every connection that the IPv4 address `source` began from the machine's table. None is no error."""
    with _connection() as netfilter:
        _delete(netfilter, _of(source))


def cut_connections(source: str, allowed: Callable[[str], bool]) -> int:
    """Remove those that `source` began to addresses that are not `allowed`; how many there were.

    The others keep their translated ports, without which their answers would not find back.
    """
    with _connection() as netfilter:
        mine = [found for found in _listed(netfilter, _of(source)) if _address(found, _IP_V4_SRC) == source]
        doomed = [found for found in mine if not allowed(_address(found, _IP_V4_DST))]
        for found in doomed:
            _delete(netfilter, attribute(_TUPLE_ORIG | _NESTED, found))
    return len(doomed)


def _connection() -> socket.socket:
    netfilter = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
    netfilter.settimeout(_ANSWER_WITHIN_S)
    return netfilter


def _of(source: str) -> bytes:
    address = attribute(_IP_V4_SRC, socket.inet_aton(source))
    chosen = nested(_FILTER, attribute(_FILTER_ORIG_FLAGS, struct.pack("=I", _BY_SOURCE)))
    return nested(_TUPLE_ORIG, nested(_TUPLE_IP, address)) + chosen


def _message(kind: int, flags: int, body: bytes) -> bytes:
    return struct.pack("=IHHIIBBH", 20 + len(body), kind, _REQUEST | flags, 1, 0, socket.AF_INET, 0, 0) + body


def _delete(netfilter: socket.socket, chosen: bytes) -> None:
    netfilter.send(_message(_DELETE, _ACK, chosen))
    answer = netfilter.recv(_RECEIVE)
    _, kind, _, _, _ = struct.unpack_from("=IHHII", answer)
    code = struct.unpack_from("=i", answer, 16)[0] if kind == _ERROR else 0
    if code not in (0, -2):  # ENOENT: there was none
        raise OSError(-code, f"conntrack: {os.strerror(-code)}")


def _listed(netfilter: socket.socket, chosen: bytes) -> Iterator[bytes]:
    """The original tuple of each connection, as the kernel wrote it."""
    netfilter.send(_message(_GET, _DUMP, chosen))
    while True:
        answer, at = netfilter.recv(_RECEIVE), 0
        while at + 16 <= len(answer):
            size, kind = struct.unpack_from("=IH", answer, at)
            if kind == _DONE:
                return
            if kind == _ERROR:
                code = struct.unpack_from("=i", answer, at + 16)[0]
                raise OSError(-code, f"conntrack: {os.strerror(-code)}")
            yield dict(attributes(answer[at + 20 : at + size]))[_TUPLE_ORIG]
            at += size + -size % 4


def _address(found: bytes, which: int) -> str:
    addresses = dict(attributes(dict(attributes(found))[_TUPLE_IP]))
    return socket.inet_ntoa(addresses[which])
