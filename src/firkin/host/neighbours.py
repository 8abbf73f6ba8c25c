"""An nft table within a sandbox's own network: what it sends goes to the other end of its wire, or to itself.

The kernel keeps an entry for each neighbour that somebody sends to, and has room
for 1,024 in all networks of the machine together, the host's among them. Whoever
may open a socket can say that an address is on the wire (SO_DONTROUTE,
SO_BINDTODEVICE), and the kernel believes it, or can name a group. Here that is
refused, with EPERM, after the way was chosen and before the neighbour is looked up.

Nothing inside may change the table: that takes CAP_NET_ADMIN, which no sandbox
has. The host is not protected by it from packets, `host.firewall` does that.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

from firkin.host import nfnetlink as nft
from firkin.host.nfnetlink import INET, Nfnetlink

_TABLE, _CHAIN = "firkin", "neighbours"
_POST_ROUTING = 4
_ACCEPTED = 1
_REGISTER = 1
_EQUAL, _OTHER = 0, 1
_META_OUT, _META_PROTOCOL = 5, 15
_NEXT_HOP = 1  # the destination where there is no gateway to it
_LOOPBACK_INDEX = struct.pack("=I", 1)  # of `lo` in every network but the first
_IPV6 = bytes([socket.AF_INET6])
_NETWORK_HEADER, _IPV6_DESTINATION = 1, (24, 16)


def hold_neighbours(*, host: str, own: str) -> None:
    """In the network that the caller is in, before anything is up there. `OSError` when the kernel refuses.

    `own` may be a neighbour too: where a virtual machine is behind this network, it has that address.
    """
    kernel = Nfnetlink()
    try:
        table = nft.text(1, _TABLE)
        kernel.transact(
            [(nft.NEW_TABLE, INET, table), (nft.NEW_CHAIN, INET, table + _hook()), *_rules(table, host, own)]
        )
    finally:
        kernel.close()


def _hook() -> bytes:
    hook = nft.nested(4, nft.number(1, _POST_ROUTING), nft.number(2, 0))
    return nft.text(3, _CHAIN) + hook + nft.number(5, _ACCEPTED) + nft.text(7, "filter")


def _rules(table: bytes, host: str, own: str) -> Iterator[nft.Message]:
    """``oif != lo rt ip nexthop != HOST rt ip nexthop != OWN drop``, ``meta nfproto ipv6 ip6 daddr != ::1 drop``."""
    for expressions in (
        [
            *_meta(_META_OUT, _OTHER, _LOOPBACK_INDEX),
            nft.expression("rt", nft.number(1, _REGISTER), nft.number(2, _NEXT_HOP)),
            _compare(_OTHER, socket.inet_aton(host)),
            _compare(_OTHER, socket.inet_aton(own)),
            _drop(),
        ],
        [
            *_meta(_META_PROTOCOL, _EQUAL, _IPV6),
            _payload(*_IPV6_DESTINATION),
            _compare(_OTHER, socket.inet_pton(socket.AF_INET6, "::1")),
            _drop(),
        ],
    ):
        yield nft.NEW_RULE, INET, table + nft.text(2, _CHAIN) + nft.nested(4, *expressions)


def _meta(key: int, how: int, value: bytes) -> tuple[bytes, bytes]:
    return nft.expression("meta", nft.number(1, _REGISTER), nft.number(2, key)), _compare(how, value)


def _compare(how: int, value: bytes) -> bytes:
    return nft.expression("cmp", nft.number(1, _REGISTER), nft.number(2, how), nft.nested(3, nft.attribute(1, value)))


def _payload(at: int, size: int) -> bytes:
    place = (nft.number(2, _NETWORK_HEADER), nft.number(3, at), nft.number(4, size))
    return nft.expression("payload", nft.number(1, _REGISTER), *place)


def _drop() -> bytes:
    verdict = nft.nested(2, nft.number(1, 0))
    return nft.expression("immediate", nft.number(1, 0), nft.nested(2, verdict))
