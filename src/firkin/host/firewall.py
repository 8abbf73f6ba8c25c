"""Which sandboxes may reach the internet: one nft table whose rules never change, and a group for each interface.

Every sandbox's host-side interface is called ``fk…``. From it: the host itself
answers nothing at all (who wants to reach a service inside goes through the
agent); private, link-local, metadata, multicast and other sandboxes' addresses
are dropped, and so is what claims to come from another address; IPv6 is
dropped; and everything else is dropped too unless the interface is in the group
`ONLINE`. A sandbox with a finer policy is in the group `DECIDED`: what a table of
its own marked passes (see `host.reach_tables`), everything else is dropped. In any
case the host's own addresses are out of reach, and so is what another program on
the host translated into another destination than the policy was asked about (a
container's published port is an address of the host first). How many entries one sandbox
may hold in the machine's connection table is bounded. Fragments of packets are dropped before the
kernel would collect them: what waits for its other parts is in one store of the whole machine.

An interface in the group of an egress gateway (`led_group`) reaches that gateway's
doors and nothing else: all its TCP, and UDP to port 53, is led there whatever
its destination, and everything else of it is dropped (QUIC too, so that clients
fall back to TCP).

The group is a property of the interface (as ``ip link set … group`` sets it)
and dies with it: no state of a killed server can be inherited, and a change
costs the same with one sandbox and with thousands, where a set of nft would be
read whole each time.

The table is shared by all Firkin servers of a machine, because a drop in one
base chain cannot be undone by an accept in another one's. For the same reason
what it refused is kept in sets, which any number of servers can read.

Other programs may remove it: ``nft flush ruleset`` is how most of their own rule
files begin. Each server has an empty chain of its own in the table, by which it can
tell that nobody has, whoever put the rest back meanwhile.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import subprocess
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from firkin.host import nfnetlink as nft
from firkin.host.nfnetlink import INET, Nfnetlink
from firkin.law.reach import PRIVATE, SANDBOXES

TABLE = "firkin"
INTERFACE_PREFIX = "fk"
FLOWS = 4096  # connections of one sandbox, of a machine's 65,536 or more
_VERSION = "version_7"  # a chain that only says which rules these are; count up with every change of them
ONLINE = 26217  # the interface group of those that may go out; a number that nobody else is likely to use
DECIDED = 26218  # and of those of whose packets `host.reach_tables` marks what may pass
PASSED = 0x66697270  # that mark; taken off again before anything else on the host could act on it
_LED = 0x280000  # and from here on the groups of those that gateways lead, by the gateways' slots
_BEFORE_DEFRAGMENTATION = -450  # NF_IP_PRI_CONNTRACK_DEFRAG is -400
_USERS = Path("/run/firkin/firewall.users")

# What is refused is counted for each sandbox, and one new destination a second of each is remembered for a minute:
# however hard one tries, it takes no more room than this, and nobody else's.
COUNTED, TOLD, REFUSED, REFUSED_OTHER = "counted", "told", "refused", "refused_other"
OPEN = "flows"  # and how many connections each has open
REMEMBERED_S = 60
_SANDBOXES_AT_MOST = 8192

_RULES = f"""
table inet {TABLE} {{
    set {OPEN} {{ type ipv4_addr; flags dynamic; size 65535; }}
    set {COUNTED} {{ type ipv4_addr; flags dynamic; size {_SANDBOXES_AT_MOST}; }}
    set {TOLD} {{ type ipv4_addr; flags dynamic; size {_SANDBOXES_AT_MOST}; }}
    set {REFUSED} {{
        type ipv4_addr . ipv4_addr . inet_proto . inet_service
        flags dynamic, timeout; timeout {REMEMBERED_S}s; size 65535
    }}
    set {REFUSED_OTHER} {{
        type ipv4_addr . ipv4_addr . inet_proto
        flags dynamic, timeout; timeout {REMEMBERED_S}s; size 65535
    }}
    chain {_VERSION} {{ }}
    set private {{ type ipv4_addr; flags interval; elements = {{ {", ".join(PRIVATE)} }} }}
    map tcp_doors {{ type devgroup : ipv4_addr . inet_service; }}
    map dns_tcp_doors {{ type devgroup : ipv4_addr . inet_service; }}
    map dns_udp_doors {{ type devgroup : ipv4_addr . inet_service; }}
    set doors {{ type devgroup . ipv4_addr . inet_service; }}
    chain input {{
        type filter hook input priority -5; policy accept;
        iifname "{INTERFACE_PREFIX}*" jump inward
        ip daddr {SANDBOXES} iifname != "lo" drop
    }}
    chain inward {{
        ct status dnat iifgroup . ip daddr . th dport @doors jump to_gateway
        goto refuse
    }}
    chain to_gateway {{
        ct state new add @{OPEN} {{ ip saddr ct count over {FLOWS} }} drop
        accept
    }}
    chain led {{
        type nat hook prerouting priority -100; policy accept;
        iifname != "{INTERFACE_PREFIX}*" accept
        meta nfproto != ipv4 accept
        tcp dport 53 dnat ip to iifgroup map @dns_tcp_doors
        meta l4proto tcp dnat ip to iifgroup map @tcp_doors
        udp dport 53 dnat ip to iifgroup map @dns_udp_doors
    }}
    chain early {{
        type filter hook prerouting priority {_BEFORE_DEFRAGMENTATION}; policy accept;
        iifname != "{INTERFACE_PREFIX}*" accept
        meta nfproto != ipv4 drop
        ip frag-off & 0x3fff != 0 goto fragment
    }}
    chain fragment {{
        fib saddr . iif oif missing drop
        update @{COUNTED} {{ ip saddr counter }}
        drop
    }}
    chain spoofed {{
        type filter hook prerouting priority -150; policy accept;
        iifname "{INTERFACE_PREFIX}*" fib saddr . iif oif missing drop
    }}
    chain forward {{
        type filter hook forward priority -5; policy accept;
        iifname "{INTERFACE_PREFIX}*" jump outbound
        oifname "{INTERFACE_PREFIX}*" oifgroup {{ {ONLINE}, {DECIDED} }} ct state established,related accept
        oifname "{INTERFACE_PREFIX}*" drop
    }}
    chain outbound {{
        meta nfproto != ipv4 drop
        ip saddr != {SANDBOXES} drop
        fib daddr type local goto refuse
        ct status dnat goto refuse
        iifgroup {DECIDED} goto decided
        ip daddr @private goto refuse
        iifgroup != {ONLINE} goto refuse
        goto admit
    }}
    chain decided {{
        meta mark != {PASSED} goto refuse
        meta mark set 0
        goto admit
    }}
    chain admit {{
        ct state new add @{OPEN} {{ ip saddr ct count over {FLOWS} }} drop
        accept
    }}
    chain refuse {{
        meta nfproto != ipv4 drop
        ip saddr != {SANDBOXES} drop
        update @{COUNTED} {{ ip saddr counter }}
        update @{TOLD} {{ ip saddr limit rate over 1/second burst 16 packets }} drop
        meta l4proto {{ tcp, udp }} update @{REFUSED} {{ ip saddr . ip daddr . meta l4proto . th dport counter }} drop
        update @{REFUSED_OTHER} {{ ip saddr . ip daddr . meta l4proto counter }}
        drop
    }}
    chain postrouting {{
        type nat hook postrouting priority 100; policy accept;
        ip saddr {SANDBOXES} oifname != "{INTERFACE_PREFIX}*" masquerade
    }}
}}
"""


class FirewallUnavailable(Exception):
    """nft is missing or refused; the text says which."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Doors:
    """The ports on which a gateway listens."""

    tcp: int
    dns_tcp: int
    dns_udp: int


def led_group(slot: int) -> int:
    """The interface group of those that are led to the gateway in `slot`, which no other server of the machine has."""
    return _LED + slot


class Firewall:
    """The table, installed and removed: by libnftables where it is there, else by the program. Thread-safe.

    Every server holds the file `users` locked (shared) while it lives, so that
    the last one can tell that it is the last. `server` is this one's name.
    """

    def __init__(self, server: str, users: Path = _USERS) -> None:
        self._lock = threading.Lock()
        self._own = f"server_{server}"
        self._users = users
        self._kernel = Nfnetlink()
        self._user = -1
        self._library: ctypes.CDLL | None = None
        self._context: ctypes.c_void_p | None = None

    def install(self) -> None:
        """Make the table unless it is there, in this version."""
        self._users.parent.mkdir(parents=True, exist_ok=True)
        self._user = os.open(self._users, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._user, fcntl.LOCK_SH)
        if not self._has(_VERSION):
            if self._try(f"list table inet {TABLE}"):
                self._replace()
            else:
                self._make()
        self._run(f"add chain inet {TABLE} {self._own}")

    def stands(self) -> bool:
        """Whether nobody removed the table since it was installed or restored. `OSError`. Takes 50 µs."""
        return self._has(self._own)

    def restore(self) -> None:
        """Somebody did: put it back, without doors and what was refused. Raises `FirewallUnavailable`, `OSError`."""
        if not self._has(_VERSION):
            self._make()
        self._run(f"add chain inet {TABLE} {self._own}")

    def _make(self) -> None:
        """At one instant, and once, whoever else does the same."""
        if not self._try(f"create table inet {TABLE}; {_RULES}") and not self._has(_VERSION):
            self._run(_RULES)

    def _has(self, chain: str) -> bool:
        try:
            self._kernel.ask((nft.GET_CHAIN, INET, nft.text(1, TABLE) + nft.text(3, chain)))
        except OSError as error:
            if error.errno == errno.ENOENT:
                return False
            raise
        return True

    def _replace(self) -> None:
        """Rules of another version give way, unless a server of that version still runs."""
        if not self._alone():
            raise FirewallUnavailable(
                "another server of a different Firkin version runs on this machine; stop it, then start this one"
            )
        self._run(f"delete table inet {TABLE}; {_RULES}")
        fcntl.flock(self._user, fcntl.LOCK_SH)

    def _alone(self) -> bool:
        try:
            fcntl.flock(self._user, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fcntl.flock(self._user, fcntl.LOCK_SH)
            return False
        return True

    def open_doors(self, group: int, address: str, doors: Doors) -> None:
        """Lead the interfaces of `group` to a gateway that listens on `address`. Raises `FirewallUnavailable`."""
        self.close_doors(group)
        ports = {"tcp_doors": doors.tcp, "dns_tcp_doors": doors.dns_tcp, "dns_udp_doors": doors.dns_udp}
        adds = [f"add element inet {TABLE} {name} {{ {group} : {address} . {port} }}" for name, port in ports.items()]
        adds += [f"add element inet {TABLE} doors {{ {group} . {address} . {port} }}" for port in ports.values()]
        self._run("; ".join(adds))

    def close_doors(self, group: int) -> None:
        """Lead nothing of `group` anywhere: it reaches nothing. Also what a killed server left of it."""
        for name in ("tcp_doors", "dns_tcp_doors", "dns_udp_doors"):
            self._try(f"delete element inet {TABLE} {name} {{ {group} }}")
        for found in re.findall(rf"\b{group} \. [0-9.]+ \. [0-9]+", self._listed(f"list set inet {TABLE} doors")):
            self._try(f"delete element inet {TABLE} doors {{ {found} }}")

    def remove_if_last(self) -> None:
        """Remove the table, unless another server still relies on it."""
        if self._alone():
            self._try(f"delete table inet {TABLE}")

    def close(self) -> None:
        if self._user >= 0:
            with suppress(FirewallUnavailable):
                self._try(f"delete chain inet {TABLE} {self._own}")
            os.close(self._user)
            self._user = -1
        self._kernel.close()
        with self._lock:
            if self._library is not None and self._context is not None:
                self._library.nft_ctx_free(self._context)
            self._library = self._context = None

    def _run(self, command: str) -> None:
        complaint = self._execute(command)
        if complaint is not None:
            raise FirewallUnavailable(f"nft refused: {complaint}")

    def _try(self, command: str) -> bool:
        return self._execute(command) is None

    def _listed(self, command: str) -> str:
        """What nft prints; nothing when it refuses."""
        with self._lock:
            library, context = self._open()
            if library is None or context is None:
                return subprocess.run(["nft", command], capture_output=True, text=True, timeout=10, check=False).stdout
            library.nft_ctx_get_output_buffer(context)  # empties what an earlier command left
            if library.nft_run_cmd_from_buffer(context, command.encode()) != 0:
                return ""
            return (library.nft_ctx_get_output_buffer(context) or b"").decode(errors="replace")

    def _execute(self, command: str) -> str | None:
        """None when it worked, else what nft said."""
        with self._lock:
            library, context = self._open()
            if library is None or context is None:
                return _by_program(command)
            if library.nft_run_cmd_from_buffer(context, command.encode()) == 0:
                return None
            said = library.nft_ctx_get_error_buffer(context)
            return (said or b"no reason given").decode(errors="replace").strip().splitlines()[0][:200]

    def _open(self) -> tuple[ctypes.CDLL | None, ctypes.c_void_p | None]:
        if self._context is None:
            try:
                library = ctypes.CDLL("libnftables.so.1")
            except OSError:
                return None, None
            library.nft_ctx_new.restype = ctypes.c_void_p
            library.nft_ctx_get_error_buffer.restype = ctypes.c_char_p
            library.nft_ctx_get_output_buffer.restype = ctypes.c_char_p
            for name in (
                "nft_ctx_buffer_error",
                "nft_ctx_buffer_output",
                "nft_ctx_get_output_buffer",
            ):
                getattr(library, name).argtypes = [ctypes.c_void_p]
            library.nft_ctx_get_error_buffer.argtypes = [ctypes.c_void_p]
            library.nft_ctx_free.argtypes = [ctypes.c_void_p]
            library.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
            context = ctypes.c_void_p(library.nft_ctx_new(ctypes.c_uint32(0)))
            library.nft_ctx_buffer_error(context)
            library.nft_ctx_buffer_output(context)
            self._library, self._context = library, context
        return self._library, self._context


def _by_program(command: str) -> str | None:
    try:
        done = subprocess.run(["nft", "-f", "-"], input=command.encode(), capture_output=True, timeout=10, check=False)
    except FileNotFoundError:
        raise FirewallUnavailable("nft is missing; install it: apt-get install nftables") from None
    return None if done.returncode == 0 else done.stderr.decode(errors="replace").strip()[:200]


def allow_forwarding(interface: str) -> None:
    """Let the kernel route what comes in on `interface` (only that one, not the whole machine)."""
    with open(f"/proc/sys/net/ipv4/conf/{interface}/forwarding", "w") as file:
        file.write("1")


def guard_interface(interface: str) -> None:
    """Route what comes in on a sandbox's interface, but only from the sandbox's own address, and no IPv6 at all."""
    allow_forwarding(interface)
    with open(f"/proc/sys/net/ipv4/conf/{interface}/rp_filter", "w") as file:
        file.write("1")
    with open(f"/proc/sys/net/ipv4/conf/{interface}/arp_ignore", "w") as file:
        file.write("1")
    forbid_ipv6(interface)


def forbid_ipv6(interface: str) -> None:
    """Also of `default`: whatever interfaces this network gets from here on."""
    with suppress(FileNotFoundError), open(f"/proc/sys/net/ipv6/conf/{interface}/disable_ipv6", "w") as file:
        file.write("1")


def uplinks() -> list[str]:
    """The interfaces of the machine's default routes."""
    with open("/proc/net/route") as file:
        rows = [line.split() for line in file.readlines()[1:]]
    return sorted({row[0] for row in rows if row[1] == "00000000"})
