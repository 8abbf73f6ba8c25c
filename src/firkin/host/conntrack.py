"""Forgetting the connections of an address (ctnetlink; Linux 5.8)."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable

from firkin.host.nfnetlink import DEL_CONNECTIONS, GET_CONNECTIONS, Nfnetlink, attribute, attributes, nested

_TUPLE_ORIG, _FILTER = 1, 25
_TUPLE_IP, _IP_V4_SRC, _IP_V4_DST, _FILTER_ORIG_FLAGS = 1, 1, 2, 1
_BY_SOURCE = 1


def delete_connections(kernel: Nfnetlink, source: str) -> None:
    """Remove every connection that the IPv4 address `source` began from the machine's table. None is no error."""
    _delete(kernel, _of(source))


def cut_connections(kernel: Nfnetlink, source: str, allowed: Callable[[str], bool]) -> int:
    """Remove those that `source` began to addresses that are not `allowed`; how many there were.

    The others keep their translated ports, without which their answers would not find back.
    """
    found = [_original(body) for body in kernel.dump((GET_CONNECTIONS, socket.AF_INET, _of(source)))]
    mine = [connection for connection in found if _address(connection, _IP_V4_SRC) == source]
    doomed = [connection for connection in mine if not allowed(_address(connection, _IP_V4_DST))]
    for connection in doomed:
        _delete(kernel, nested(_TUPLE_ORIG, connection))
    return len(doomed)


def _of(source: str) -> bytes:
    address = attribute(_IP_V4_SRC, socket.inet_aton(source))
    chosen = nested(_FILTER, attribute(_FILTER_ORIG_FLAGS, struct.pack("=I", _BY_SOURCE)))
    return nested(_TUPLE_ORIG, nested(_TUPLE_IP, address)) + chosen


def _delete(kernel: Nfnetlink, chosen: bytes) -> None:
    try:
        kernel.order((DEL_CONNECTIONS, socket.AF_INET, chosen))
    except OSError as error:
        if error.errno != errno.ENOENT:  # there was none
            raise


def _original(body: bytes) -> bytes:
    """A connection's original tuple, as the kernel wrote it."""
    return dict(attributes(body))[_TUPLE_ORIG]


def _address(connection: bytes, which: int) -> str:
    addresses = dict(attributes(dict(attributes(connection))[_TUPLE_IP]))
    return socket.inet_ntoa(addresses[which])
