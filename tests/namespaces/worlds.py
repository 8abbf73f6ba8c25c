"""An outside for sandboxes: a network namespace of the test's own that answers for whole networks behind one wire.

Every address of `NETWORKS` echoes on UDP and TCP port 8000, so a test can ask
which of any number of addresses a sandbox reaches.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

PORT = 8000
NETWORKS = ("9.9.0.0/16", "10.77.0.0/16", "192.168.77.0/24", "169.254.169.254/32")
_NAMED = "/run/netns"
_OUTER, _INNER = "tpol0", "tpol1"
_ECHO = """
import selectors, socket
ready = selectors.DefaultSelector()
datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
datagrams.setsockopt(socket.IPPROTO_IP, 8, 1)  # IP_PKTINFO: answer from the address that was asked
datagrams.bind(("0.0.0.0", 8000))
listener = socket.create_server(("0.0.0.0", 8000), backlog=256)
ready.register(datagrams, 1)
ready.register(listener, 1)
while True:
    for key, _ in ready.select():
        if key.fileobj is datagrams:
            data, control, _, peer = datagrams.recvmsg(2048, 256)
            datagrams.sendmsg([data], [(level, kind, value) for level, kind, value in control], 0, peer)
        elif key.fileobj is listener:
            ready.register(listener.accept()[0], 1)
        else:
            try:
                data = key.fileobj.recv(65536)
                key.fileobj.sendall(data)
            except OSError:
                data = b""
            if not data:
                ready.unregister(key.fileobj)
                key.fileobj.close()
"""


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextmanager
def world() -> Iterator[str]:
    """The namespace's name; everything is gone when the block ends."""
    name = f"fkworld{os.getpid()}"
    mounted = os.path.ismount(_NAMED)
    ip("netns", "add", name)
    try:
        _wire(name)
        echo = subprocess.Popen(["ip", "netns", "exec", name, sys.executable, "-c", _ECHO])
        try:
            _wait_for_an_answer()
            yield name
        finally:
            echo.kill()
            echo.wait()
    finally:
        ip("netns", "del", name)
        if not mounted:  # the first use of a name makes a mount of it that stays
            _unmount()
        subprocess.run(["ip", "link", "del", _OUTER], check=False, capture_output=True)


def _unmount() -> None:
    """A program that has just ended in there may still hold it."""
    for _ in range(50):
        if subprocess.run(["umount", _NAMED], check=False, capture_output=True).returncode == 0:
            return
        time.sleep(0.1)
    raise AssertionError(f"{_NAMED} cannot be unmounted")


def _wire(name: str) -> None:
    ip("link", "add", _OUTER, "type", "veth", "peer", "name", _INNER, "netns", name)
    ip("addr", "add", "9.8.7.1/30", "dev", _OUTER)
    ip("link", "set", _OUTER, "up")
    ip("-n", name, "addr", "add", "9.8.7.2/30", "dev", _INNER)
    ip("-n", name, "link", "set", _INNER, "up")
    ip("-n", name, "link", "set", "lo", "up")
    for network in NETWORKS:
        ip("route", "add", network, "dev", _OUTER)
        ip("-n", name, "route", "add", "local", network, "dev", "lo")
    with open(f"/proc/sys/net/ipv4/conf/{_OUTER}/forwarding", "w") as file:
        file.write("1")


def _wait_for_an_answer() -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            probe.settimeout(0.2)
            if probe.connect_ex(("9.9.9.9", PORT)) == 0:
                return
        time.sleep(0.02)
    raise AssertionError("the world outside does not answer")
