"""The numbers of a slot: one small integer decides ids, addresses and devices, so none can clash.

A slot is unique on the machine, over all Firkin servers (see `leases`).
"""

from __future__ import annotations

import socket
import struct

# Between the ranges that systemd gives to containers (…0x6FFFFFFF) and to foreign ids (0x7FFE0000…).
_FIRST_UID = 0x70000000
_UIDS = 65536
SLOTS = 4032
_FIRST_LOOP = 1024
_FIRST_ADDRESS = "198.18.0.0"
# Of the wire's two ends: a range for local use (its second bit says so), with "fk" in it.
_HOST_HARDWARE, _GUEST_HARDWARE = b"\x02fk\x00", b"\x02fk\x01"


class SlotNumbers:
    """All numbers of slot `slot`."""

    __slots__ = (
        "first_uid",
        "guest_address",
        "guest_hardware",
        "host_address",
        "host_hardware",
        "interface",
        "loop",
        "prefix",
        "slot",
    )

    def __init__(self, slot: int) -> None:
        if not 0 <= slot < SLOTS:
            raise ValueError(f"slot {slot} is not 0…{SLOTS - 1}")
        self.slot = slot
        self.first_uid = _FIRST_UID + slot * _UIDS
        self.loop = _FIRST_LOOP + slot
        self.interface = f"fk{slot}"
        self.prefix = 30
        network = struct.unpack("!I", socket.inet_aton(_FIRST_ADDRESS))[0] + slot * 4
        self.host_address = socket.inet_ntoa(struct.pack("!I", network + 1))
        self.guest_address = socket.inet_ntoa(struct.pack("!I", network + 2))
        self.host_hardware = _HOST_HARDWARE + struct.pack("!H", slot)
        self.guest_hardware = _GUEST_HARDWARE + struct.pack("!H", slot)
