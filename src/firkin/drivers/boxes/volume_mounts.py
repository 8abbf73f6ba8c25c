"""Step: attach volumes below the sandbox's root.

Each comes as a detached mount of its own, made by the server. Here it gets the
sandbox's ids (programs inside see on the volume what lies there), and loses device
nodes and setuid. Like all mounts of the view it belongs to the initial user
namespace: a root inside can neither remove it nor make a read-only one writable.

Security: no part of the path is ever followed if it is a symlink, in an image or on
a disk that somebody inside prepared. What is missing is made below a descriptor,
under the ids of the directory that it lies in, as somebody inside would have.
"""

from __future__ import annotations

import os

from firkin.drivers.boxes.places import ROOT
from firkin.host.syscalls import (
    ATTR_IDMAP,
    ATTR_NODEV,
    ATTR_NOSUID,
    ATTR_RDONLY,
    PR_SET_SECUREBITS,
    SECBIT_NO_SETUID_FIXUP,
    mount_setattr,
    move_mount_onto,
    prctl,
)

_PLACE = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def attach(mounted: int, path: str, idmap_namespace: int, *, read_only: bool, root: str = ROOT) -> None:
    """Show the volume `mounted` at `path` below `root`. Consumes the descriptor. An `OSError` names the path."""
    attributes = ATTR_IDMAP | ATTR_NODEV | ATTR_NOSUID | (ATTR_RDONLY if read_only else 0)
    mount_setattr(mounted, attributes, user_namespace=idmap_namespace)
    try:
        place = mount_point(path, root)
    except OSError as error:
        raise OSError(error.errno, f"{path}: {error.strerror}") from error
    move_mount_onto(mounted, place)
    os.close(place)
    os.close(mounted)


def mount_point(path: str, root: str = ROOT) -> int:
    """The directory `path` below `root`, made where it is missing, as a descriptor."""
    place = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    for name in path.strip("/").split("/"):
        try:
            inner = os.open(name, _PLACE, dir_fd=place)
        except FileNotFoundError:
            _make(place, name)
            inner = os.open(name, _PLACE, dir_fd=place)
        os.close(place)
        place = inner
    return place


def _make(place: int, name: str) -> None:
    """A directory with the owner of `place`. The host's root has no id that the sandbox's disk could keep."""
    owner = os.fstat(place)
    prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP)  # the ids change, the right to write stays
    os.setegid(owner.st_gid)
    os.seteuid(owner.st_uid)
    before = os.umask(0o022)
    try:
        os.mkdir(name, 0o755, dir_fd=place)
    finally:
        os.umask(before)
        os.seteuid(0)
        os.setegid(0)
        prctl(PR_SET_SECUREBITS, 0)
