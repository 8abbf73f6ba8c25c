"""Putting a sandbox's reach in force on its wire, at one instant, and never a wider one on the way.

A wire is what a sandbox hangs at: an interface of the host, whose name begins
with ``fk``, and the sandbox's address behind it. What runs behind it, and in
what, is not known here. Everything blocks.
"""

from __future__ import annotations

import errno
import logging
from contextlib import suppress

from firkin.host.conntrack import cut_connections, delete_connections
from firkin.host.firewall import DECIDED, ONLINE
from firkin.host.netlink import Netlink, Traffic
from firkin.host.nfnetlink import Nfnetlink
from firkin.host.reach_tables import put_table, remove_orphans, remove_table
from firkin.host.refusals import RefusalLog, forget, refused_packets
from firkin.law.reach import Reach

OFFLINE = 0
_log = logging.getLogger("firkin.host")


class Wire:
    """`group` is the interface's, None while nobody knows: an earlier server set it.

    `begun`: somebody may have sent packets since it was clean; `opened`: and they may have passed.
    Looking through the machine's table of connections takes 10 ms, so it is left alone where it can have none.
    """

    __slots__ = ("address", "begun", "group", "interface", "opened")

    def __init__(self, interface: str, address: str, group: int | None = OFFLINE) -> None:
        self.interface = interface
        self.address = address
        self.group = group
        self.begun = self.opened = group is None


class Wires:
    """The kernel's side of all wires of one server. Thread-safe, but one wire is one caller's at a time."""

    def __init__(self) -> None:
        self._kernel = Nfnetlink()
        self._connections = Nfnetlink()  # of its own: nobody waits for a look through all connections
        self._links: Netlink | None = None
        self.refusals = RefusalLog(self._kernel)

    def start(self) -> None:
        """Remove what servers left that were killed. Raises `OSError` when the kernel does not take orders."""
        self._links = Netlink()
        remove_orphans(self._kernel)

    def close(self) -> None:
        """Also remove what belongs to interfaces that are gone by now."""
        with suppress(OSError):
            remove_orphans(self._kernel)
        self._kernel.close()
        self._connections.close()
        if self._links is not None:
            self._links.close()
            self._links = None

    def enforce(self, wire: Wire, reach: Reach) -> None:
        """From here on that can be reached and nothing else, by connections that are open too.

        `OSError` when the kernel refuses; then nothing can be reached at all.
        """
        group = _group_for(reach)
        if group != wire.group or group == DECIDED:
            try:
                led = wire.group not in (OFFLINE, ONLINE, DECIDED, None)
                self._set(wire, reach, group)
                if led:
                    delete_connections(self._connections, wire.address)
                elif wire.opened:
                    cut_connections(self._connections, wire.address, reach.holds)
            except OSError:
                self._shut(wire)
                raise
        wire.begun = True
        wire.opened = wire.opened or group != OFFLINE

    def _set(self, wire: Wire, reach: Reach, group: int) -> None:
        """In this order, so that in between the narrower of the old and the new holds."""
        if group == DECIDED:
            put_table(self._kernel, wire.interface, reach)
        if group != wire.group:
            self._netlink().set_group(wire.interface, group)
        if group != DECIDED and wire.group not in (OFFLINE, ONLINE):
            remove_table(self._kernel, wire.interface)
        wire.group = group

    def _shut(self, wire: Wire) -> None:
        """Offline, whatever it was. The group alone does that; a table that stays marks packets for nobody."""
        wire.group = None
        wire.begun = wire.opened = True
        try:
            self._netlink().set_group(wire.interface, OFFLINE)
            delete_connections(self._connections, wire.address)
        except OSError as error:
            _log.error("not cut off interface=%s error=%s", wire.interface, error)

    def lead(self, wire: Wire, group: int) -> None:
        """Its way out is the gateway of `group` from here on, and nothing else. `OSError`: nothing can be reached."""
        try:
            self._netlink().set_group(wire.interface, group)
        except OSError:
            self._shut(wire)
            raise
        wire.group = group
        wire.begun = wire.opened = True

    def clean(self, wire: Wire) -> None:
        """The sandbox is gone: nothing of what it was allowed or did may be left for the next. Raises `OSError`."""
        if wire.group not in (OFFLINE, ONLINE):
            self._take_offline(wire)
            wire.group = OFFLINE
            remove_table(self._kernel, wire.interface)
        if wire.opened:
            delete_connections(self._connections, wire.address)
        if wire.begun:
            forget(self._kernel, wire.address)
        wire.begun = wire.opened = False

    def _take_offline(self, wire: Wire) -> None:
        try:
            self._netlink().set_group(wire.interface, OFFLINE)
        except OSError as error:
            if error.errno != errno.ENODEV:  # an adopted sandbox's interface ends with it
                raise

    def traffic(self, wire: Wire) -> Traffic:
        """What the sandbox sent is what the host received. Raises `OSError`."""
        return self._netlink().traffic(wire.interface)

    def refused_packets(self, wire: Wire) -> int:
        return refused_packets(self._kernel, wire.address)

    def _netlink(self) -> Netlink:
        assert self._links is not None, "start() comes first"
        return self._links


def forget_tenant(kernel: Nfnetlink, interface: str, address: str) -> None:
    """Remove what the kernel keeps by this name and address: a table, connections, what was refused."""
    remove_table(kernel, interface)
    delete_connections(kernel, address)
    forget(kernel, address)


def _group_for(reach: Reach) -> int:
    if reach.is_nothing:
        return OFFLINE
    return ONLINE if reach.is_plain else DECIDED
