"""Forgetting connections by their mark (ctnetlink: linux/netfilter/nfnetlink_conntrack.h)."""

from __future__ import annotations

import os
import socket
import struct

_NETLINK_NETFILTER = 12
_CONNTRACK_DELETE = 1 << 8 | 2  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_DELETE
_REQUEST_ACK = 0x1 | 0x4
_MARK, _MARK_MASK = 8, 21
_ERROR = 2


def delete_connections(mark: int) -> None:
    """Remove every IPv4 connection whose mark is `mark` from the machine's table. None is no error."""
    family = struct.pack("=BBH", socket.AF_INET, 0, 0)
    filters = struct.pack("=HH", 8, _MARK) + struct.pack("!I", mark)
    filters += struct.pack("=HH", 8, _MARK_MASK) + struct.pack("!I", 0xFFFFFFFF)
    body = family + filters
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER) as netfilter:
        netfilter.send(struct.pack("=IHHII", 16 + len(body), _CONNTRACK_DELETE, _REQUEST_ACK, 1, 0) + body)
        answer = netfilter.recv(65536)
    _, kind, _, _, _ = struct.unpack_from("=IHHII", answer)
    code = struct.unpack_from("=i", answer, 16)[0] if kind == _ERROR else 0
    if code not in (0, -2):  # ENOENT: there was none
        raise OSError(-code, f"conntrack: {os.strerror(-code)}")
