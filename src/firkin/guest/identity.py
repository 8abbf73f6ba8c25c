"""Who a sandbox is: its names in /etc, written before anybody can look.

Runs as the sandbox's own root, inside, after every right on the host was given
up: a hostile image's links lead nowhere but into itself. What cannot be written
(a read-only or full disk, odd files in the image) is left: a sandbox with an old
name is better than none.
"""

from __future__ import annotations

import os
from contextlib import suppress

_SEEDS = ("/var/lib/systemd/random-seed", "/var/lib/urandom/random-seed", "/var/lib/misc/random-seed")
_MOST = 64 * 1024


def settle(hostname: str, *, machine_id: str, restored: bool) -> None:
    """Make /etc say `hostname`, and `machine_id` unless that is empty.

    `restored`: the files were another sandbox's, whose random seed must not be used again.
    """
    _write("/etc/hostname", hostname.encode() + b"\n")
    hosts = _read("/etc/hosts")
    line = b"127.0.1.1\t" + hostname.encode()
    if line not in hosts.splitlines():
        others = [each for each in hosts.splitlines() if not each.startswith(b"127.0.1.1\t")]
        _write("/etc/hosts", b"\n".join([*others, line, b""]))
    if machine_id:
        _write("/etc/machine-id", machine_id.encode() + b"\n")
    if restored:
        for seed in _SEEDS:
            with suppress(OSError):
                os.unlink(seed)


def _read(path: str) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(fd, _MOST)
    except OSError:
        return b""
    finally:
        os.close(fd)


def _write(path: str, data: bytes) -> None:
    """In place, so that mode and owner stay; a file that is missing is made."""
    with suppress(OSError):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
        try:
            os.write(fd, data)
        finally:
            os.close(fd)
