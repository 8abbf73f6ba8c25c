"""An nft table of a sandbox's own: it marks the packets that its policy lets pass.

The table hangs at the sandbox's interface (family netdev, hook ingress), where
every packet passes that the sandbox sends, also those of connections that were
begun under an older policy. It drops nothing. It marks, and `host.firewall` lets
pass what bears the mark from an interface of the group `DECIDED`, and nothing
else: with the table gone, or before it is there, nothing passes. Marks that a
sandbox puts on its packets itself do not leave it, and are wiped off here again.

A change is one transaction. It costs no other sandbox anything, for no set and no
chain is shared.

A gateway that reads names gets its place here: another mark for what is to be led
to it (TCP to 80, 443 and the policy's `https_ports`, and DNS), next to `PASSED`.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator

from firkin.host import nfnetlink as nft
from firkin.host.firewall import INTERFACE_PREFIX, PASSED
from firkin.host.nfnetlink import NETDEV, Message, Nfnetlink
from firkin.law.reach import Reach, Span

_PREFIX = "firkin-"
_CHAIN = "out"
_SET = "__set%d"  # the kernel numbers a set without a name; it ends with the rule that it is bound to
_ANONYMOUS_INTERVALS = 0x1 | 0x2 | 0x4
_INTERVAL_END = 1
_IPV4_ADDRESS = 7
_ETH_IP = b"\x08\x00"
_META_PROTOCOL, _META_MARK = 1, 3
_REGISTER = 1
_NETWORK_HEADER, _DESTINATION_AT = 1, 16
_ELEMENTS_A_MESSAGE = 1000  # an attribute holds 64 KiB


def put_table(kernel: Nfnetlink, interface: str, reach: Reach) -> None:
    """Make or replace the interface's table at one instant. `OSError` when the kernel refuses: nothing changed then."""
    table = nft.text(1, _name(interface))
    kernel.transact(
        [
            (nft.NEW_TABLE, NETDEV, table),  # what is not there cannot be deleted
            (nft.DEL_TABLE, NETDEV, table),
            (nft.NEW_TABLE, NETDEV, table),
            (nft.NEW_CHAIN, NETDEV, table + _hook(interface)),
            (nft.NEW_SET, NETDEV, table + _set()),
            *_elements(table, reach.spans),
            *_rules(table),
        ]
    )


def probe(kernel: Nfnetlink) -> None:
    """`OSError` when this kernel knows no such tables. Nothing is made: what the transaction adds it removes again."""
    table = nft.text(1, "firkin-probe")
    kernel.transact(
        [
            (nft.NEW_TABLE, NETDEV, table),
            (nft.NEW_CHAIN, NETDEV, table + nft.text(3, _CHAIN)),
            (nft.NEW_SET, NETDEV, table + _set()),
            *_elements(table, ((1, 2),)),
            *_rules(table),
            (nft.DEL_TABLE, NETDEV, table),
        ]
    )


def remove_table(kernel: Nfnetlink, interface: str) -> None:
    """No error if there is none. It is looked for first: the kernel takes 20 ms over a transaction that fails."""
    named = nft.text(1, _name(interface))
    try:
        kernel.ask((nft.GET_TABLE, NETDEV, named))
    except OSError as error:
        if error.errno == errno.ENOENT:
            return
        raise
    kernel.transact([(nft.DEL_TABLE, NETDEV, named)])


def tables(kernel: Nfnetlink) -> list[str]:
    """The interfaces that have a table, also those that are gone: a table outlives its interface."""
    found = []
    for body in kernel.dump((nft.GET_TABLE, NETDEV, b"")):
        name = dict(nft.attributes(body)).get(1, b"").rstrip(b"\0").decode(errors="replace")
        if name.startswith(_PREFIX + INTERFACE_PREFIX):
            found.append(name.removeprefix(_PREFIX))
    return found


def remove_orphans(kernel: Nfnetlink) -> None:
    """Remove the tables of interfaces that are gone: a server was killed between the two."""
    for interface in tables(kernel):
        try:
            socket.if_nametoindex(interface)
        except OSError:
            remove_table(kernel, interface)


def _name(interface: str) -> str:
    return _PREFIX + interface


def _hook(interface: str) -> bytes:
    hook = nft.nested(4, nft.number(1, 0), nft.number(2, 0), nft.text(3, interface))
    return nft.text(3, _CHAIN) + hook + nft.number(5, 1) + nft.text(7, "filter")


def _set() -> bytes:
    kept = nft.text(2, _SET) + nft.number(3, _ANONYMOUS_INTERVALS)
    return kept + nft.number(4, _IPV4_ADDRESS) + nft.number(5, 4) + nft.number(10, 1)


def _elements(table: bytes, spans: tuple[Span, ...]) -> Iterator[Message]:
    """The kernel takes each span as its first address and the first one after it."""
    ends = [part for first, last in spans for part in (_element(first, 0), _element(last + 1, _INTERVAL_END))]
    for at in range(0, len(ends), _ELEMENTS_A_MESSAGE):
        part = nft.nested(3, *ends[at : at + _ELEMENTS_A_MESSAGE])
        yield nft.NEW_ELEMENTS, NETDEV, table + nft.text(2, _SET) + nft.number(4, 1) + part


def _element(address: int, flags: int) -> bytes:
    key = nft.nested(1, nft.attribute(1, struct.pack("!I", address)))
    return nft.nested(1, key, nft.number(3, flags)) if flags else nft.nested(1, key)


def _rules(table: bytes) -> Iterator[Message]:
    """``meta mark set 0``, then ``meta protocol ip ip daddr @set meta mark set PASSED``."""
    for expressions in (_marks(0), [*_goes_to_the_set(), *_marks(PASSED)]):
        yield nft.NEW_RULE, NETDEV, table + nft.text(2, _CHAIN) + nft.nested(4, *expressions)


def _goes_to_the_set() -> list[bytes]:
    register = nft.number(1, _REGISTER)
    place = (nft.number(2, _NETWORK_HEADER), nft.number(3, _DESTINATION_AT), nft.number(4, 4))
    return [
        nft.expression("meta", register, nft.number(2, _META_PROTOCOL)),
        nft.expression("cmp", register, nft.number(2, 0), nft.nested(3, nft.attribute(1, _ETH_IP))),
        nft.expression("payload", register, *place),
        nft.expression("lookup", nft.text(1, _SET), nft.number(2, _REGISTER), nft.number(4, 1)),
    ]


def _marks(value: int) -> list[bytes]:
    wanted = nft.nested(2, nft.attribute(1, struct.pack("=I", value)))
    return [
        nft.expression("immediate", nft.number(1, _REGISTER), wanted),
        nft.expression("meta", nft.number(2, _META_MARK), nft.number(3, _REGISTER)),
    ]
