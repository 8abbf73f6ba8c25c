"""What the shared firewall refused a sandbox, as its sets say it: how many packets, and where they wanted to go.

The kernel keeps it, within bounds that `host.firewall` sets, so nothing has to
listen and no flood of packets becomes a flood of messages. A `RefusalLog` looks
into the sets when it is asked, at most twice a second for all sandboxes together,
and remembers what it found for longer than the kernel does.
"""

from __future__ import annotations

import errno
import socket
import struct
import time
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from firkin.host import nfnetlink as nft
from firkin.host.firewall import COUNTED, OPEN, REFUSED, REFUSED_OTHER, REMEMBERED_S, TABLE, TOLD
from firkin.host.nfnetlink import INET, Nfnetlink

MOST_FLOWS = 64
_LOOK_EVERY_S = 0.5


@dataclass(frozen=True, slots=True)
class Refusal:
    """Packets to one destination. `protocol` is IP's number; `port` 0 where the protocol has none."""

    destination: str
    protocol: int
    port: int
    packets: int
    at: float


_Flow = tuple[str, int, int]


class RefusalLog:
    """The last refused flows of each address that is watched. Blocks; use from one thread at a time."""

    def __init__(self, kernel: Nfnetlink) -> None:
        self._kernel = kernel
        self._flows: dict[str, OrderedDict[_Flow, Refusal]] = {}
        self._looked_at = 0.0

    def watch(self, address: str) -> None:
        self._flows.setdefault(address, OrderedDict())

    def unwatch(self, address: str) -> None:
        self._flows.pop(address, None)

    def flows(self, address: str) -> list[Refusal]:
        """The latest last."""
        return list(self._flows.get(address, {}).values())

    @property
    def is_due(self) -> bool:
        """Whether `look` would read anything."""
        return bool(self._flows) and time.monotonic() >= self._looked_at + _LOOK_EVERY_S

    def look(self) -> None:
        """Read what is new. Raises `OSError`."""
        if not self.is_due:
            return
        self._looked_at = time.monotonic()
        for name in (REFUSED, REFUSED_OTHER):
            for key, about in _elements(self._kernel, name):
                source = socket.inet_ntoa(key[:4])
                if source in self._flows:
                    self._note(self._flows[source], key, about)

    def _note(self, known: OrderedDict[_Flow, Refusal], key: bytes, about: Mapping[int, bytes]) -> None:
        flow = (socket.inet_ntoa(key[4:8]), key[8], int.from_bytes(key[12:14], "big"))
        left_s = int.from_bytes(about.get(_EXPIRATION, b""), "big") / 1000
        at = time.time() - max(0.0, REMEMBERED_S - left_s)
        packets = _packets(about)
        old = known.get(flow)
        if old is not None and packets == old.packets:
            return
        known[flow] = Refusal(*flow, packets=packets, at=at)
        known.move_to_end(flow)
        while len(known) > MOST_FLOWS:
            known.popitem(last=False)


def refused_packets(kernel: Nfnetlink, address: str) -> int:
    """How many packets of that sandbox were refused since `forget`. Raises `OSError`."""
    try:
        body = kernel.ask((nft.GET_ELEMENTS, INET, _chosen(COUNTED, socket.inet_aton(address))))
    except OSError as error:
        if error.errno == errno.ENOENT:
            return 0
        raise
    return sum(_packets(about) for _, about in _listed(body))


def forget(kernel: Nfnetlink, address: str) -> None:
    """Remove all that is kept of that sandbox: the next one with its address begins at nothing. Raises `OSError`."""
    gone = socket.inet_aton(address)
    try:
        _remove(kernel, OPEN, gone)
        if not _remove(kernel, COUNTED, gone):
            return  # what is never counted is never kept
        _remove(kernel, TOLD, gone)
        for name in (REFUSED, REFUSED_OTHER):
            for key, _ in _elements(kernel, name):
                if key[:4] == gone:
                    _remove(kernel, name, key)
    except OSError as error:
        if error.errno != errno.ENOENT:  # there is not even a table
            raise


def _remove(kernel: Nfnetlink, name: str, key: bytes) -> bool:
    """Whether it was there. It is looked for first: the kernel takes 20 ms over a transaction that fails."""
    chosen = _chosen(name, key)
    try:
        kernel.ask((nft.GET_ELEMENTS, INET, chosen))
        kernel.transact([(nft.DEL_ELEMENTS, INET, chosen)])
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
        return False
    return True


_KEY, _EXPIRATION, _EXPRESSION, _EXPRESSIONS = 1, 5, 7, 11


def _chosen(name: str, key: bytes) -> bytes:
    element = nft.nested(1, nft.nested(_KEY, nft.attribute(1, key)))
    return nft.text(1, TABLE) + nft.text(2, name) + nft.nested(3, element)


def _elements(kernel: Nfnetlink, name: str) -> list[tuple[bytes, Mapping[int, bytes]]]:
    asked = (nft.GET_ELEMENTS, INET, nft.text(1, TABLE) + nft.text(2, name))
    return [found for body in kernel.dump(asked) for found in _listed(body)]


def _listed(body: bytes) -> list[tuple[bytes, Mapping[int, bytes]]]:
    """Each element's key and its other attributes."""
    found: list[tuple[bytes, Mapping[int, bytes]]] = []
    for _, element in nft.attributes(dict(nft.attributes(body)).get(3, b"")):
        about = dict(nft.attributes(element))
        key = dict(nft.attributes(about.get(_KEY, b""))).get(1, b"")
        if key:
            found.append((key, about))
    return found


def _packets(about: Mapping[int, bytes]) -> int:
    """Of the element's counter, which stands alone or in a list."""
    expressions = [about[_EXPRESSION]] if _EXPRESSION in about else []
    expressions += [body for _, body in nft.attributes(about.get(_EXPRESSIONS, b""))]
    for expression in expressions:
        parts = dict(nft.attributes(expression))
        if parts.get(1, b"").rstrip(b"\0") == b"counter":
            counter = dict(nft.attributes(parts.get(2, b"")))
            with suppress(struct.error):
                return int(struct.unpack("!Q", counter.get(2, b""))[0])
    return 0
