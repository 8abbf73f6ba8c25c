"""Forgetting the connections of an address (ctnetlink: linux/netfilter/nfnetlink_conntrack.h; Linux 5.8)."""

from __future__ import annotations

import os
import socket
import struct

_NETLINK_NETFILTER = 12
_CONNTRACK_DELETE = 1 << 8 | 2  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_DELETE
_REQUEST_ACK = 0x1 | 0x4
_TUPLE_ORIG, _FILTER = 1, 25
_TUPLE_IP, _IP_V4_SRC, _FILTER_ORIG_FLAGS = 1, 1, 1
_BY_SOURCE = 1
_NESTED = 0x8000
_ERROR = 2


def delete_connections(source: str) -> None:
    """Remove every connection that the IPv4 address `source` began from the machine's table. None is no error."""
    address = _attribute(_IP_V4_SRC, socket.inet_aton(source))
    tuple_of = _attribute(_TUPLE_ORIG | _NESTED, _attribute(_TUPLE_IP | _NESTED, address))
    chosen = _attribute(_FILTER | _NESTED, _attribute(_FILTER_ORIG_FLAGS, struct.pack("=I", _BY_SOURCE)))
    body = struct.pack("=BBH", socket.AF_INET, 0, 0) + tuple_of + chosen
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER) as netfilter:
        netfilter.send(struct.pack("=IHHII", 16 + len(body), _CONNTRACK_DELETE, _REQUEST_ACK, 1, 0) + body)
        answer = netfilter.recv(65536)
    _, kind, _, _, _ = struct.unpack_from("=IHHII", answer)
    code = struct.unpack_from("=i", answer, 16)[0] if kind == _ERROR else 0
    if code not in (0, -2):  # ENOENT: there was none
        raise OSError(-code, f"conntrack: {os.strerror(-code)}")


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + b"\0" * (-len(value) % 4)
