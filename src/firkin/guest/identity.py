"""Who a sandbox is: its names in /etc, written before anybody can look.

Runs as the sandbox's own root, inside, after every right on the host was given
up. A hostile image's files are replaced where they are no plain files: a link
could lead to a descriptor of the process that writes. What cannot be written (a
full disk, odd folders in the image) is left: a sandbox with an old name is
better than none.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress

_SEEDS = ("/var/lib/systemd/random-seed", "/var/lib/urandom/random-seed", "/var/lib/misc/random-seed")
_OWN_NAME = b"127.0.1.1\t"
_MOST = 64 * 1024
_PLAIN = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def settle(hostname: str, *, machine_id: str, restored: bool) -> None:
    """Make /etc say `hostname`, and `machine_id` unless that is empty.

    `restored`: the files were another sandbox's, whose random seed must not be used again.
    """
    _write("/etc/hostname", hostname.encode() + b"\n")
    lines = _read("/etc/hosts").splitlines()
    own = _OWN_NAME + hostname.encode()
    if own not in lines:
        others = [line for line in lines if not line.startswith(_OWN_NAME)]
        _write("/etc/hosts", b"\n".join([*others, own, b""]))
    if machine_id:
        _write("/etc/machine-id", machine_id.encode() + b"\n")
    if restored:
        for seed in _SEEDS:
            with suppress(OSError):
                os.unlink(seed)


def _read(path: str) -> bytes:
    with suppress(OSError):
        fd = os.open(path, os.O_RDONLY | _PLAIN)
        try:
            return os.read(fd, _MOST) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
        finally:
            os.close(fd)
    return b""


def _write(path: str, data: bytes) -> None:
    """In place, so that mode and owner stay. What is no plain file is replaced by one.

    One of the same length is not emptied first: giving its block back and taking another is a tenth of what an emulated
    machine does on waking.
    """
    size = -1
    with suppress(OSError):
        status = os.lstat(path)
        if stat.S_ISREG(status.st_mode):
            size = status.st_size
        else:
            os.unlink(path)
    with suppress(OSError):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | _PLAIN | (0 if size == len(data) else os.O_TRUNC), 0o644)
        try:
            os.write(fd, data)
        finally:
            os.close(fd)
