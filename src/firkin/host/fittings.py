"""What every root file system needs before a sandbox can stand on it.

The user and its home, real directories to mount on, a resolver's and a host's
file, sudo without a password. And what none may have: device nodes, and
attributes by which an overlay would be led elsewhere.
"""

from __future__ import annotations

import errno
import os
import posixpath
import shlex
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress

from firkin.host.accounts import Accounts
from firkin.host.confined import ConfinedTree
from firkin.law.errors import TemplateFault, TemplatePrepareFailure
from firkin.law.templates import ImageConfig

VERSION = "1"  # raise it when what is written here changes: roots are kept under what they were made with
HOME = "/home/user"
_MOUNT_POINTS = (("proc", 0o555), ("sys", 0o555), ("dev", 0o755), ("run", 0o755))
_KERNELS = ("proc", "sys", "dev")  # every sandbox has these of its own
_FOREIGN_ATTRIBUTES = ("trusted.", "user.overlay.")
_HOSTNAME = "sandbox"

RESOLVERS = "nameserver 1.1.1.1\nnameserver 8.8.8.8\noptions timeout:2 attempts:2\n"
HOSTS = (
    f"127.0.0.1\tlocalhost\n127.0.1.1\t{_HOSTNAME}\n"
    "::1\tlocalhost ip6-localhost ip6-loopback\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n"
)
# A pseudo-terminal of its own would detach a command from the process group that a signal is sent to.
SUDO_DEFAULTS = "Defaults !use_pty\nDefaults lecture=never\n"
SUDO_RULE = "user ALL=(ALL:ALL) NOPASSWD:ALL\n"
PROFILE = """\
if [ "${EUID:-$(id -u)}" -eq 0 ]; then
  PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
else
  PATH=/home/user/.local/bin:/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin
fi
export PATH
"""
# What a shell may do in a sandbox that is nobody's yet, so that it has done that before: no profile but this one, which
# leaves nothing behind. What others do may be meant for the caller's variables.
REHEARSAL = (
    "[ -r /etc/profile ]; for home in /root /home/*; do [ -r $home/.profile ]; done; "
    f'[ "$(</etc/profile)" = {shlex.quote(PROFILE.rstrip())} ] && HOME=/nonexistent exec "$BASH" -l -c echo; echo'
)


def fit(tree: ConfinedTree, *, user: str = "", workdir: str = "", env: Mapping[str, str] | None = None) -> ImageConfig:
    """Make `tree` ready and return what a process in it gets, given the image's own wishes."""
    os.fchown(tree.fd, 0, 0)
    os.fchmod(tree.fd, 0o755)
    for name, mode in _MOUNT_POINTS:
        tree.make_directory(name, mode)
    tree.make_directory("tmp", 0o1777)
    if not _is_directory(tree, "etc"):
        tree.make_directory("etc")
    accounts = Accounts(tree)
    account = accounts.ensure_user()
    chosen = accounts.image_user(user)
    accounts.save()
    tree.make_directory(HOME, 0o755, owner=(account.uid, account.gid))
    _require_seen(tree, HOME)
    tree.write("etc/resolv.conf", RESOLVERS)
    tree.write("etc/hosts", HOSTS)
    tree.write("etc/hostname", f"{_HOSTNAME}\n")
    _allow_sudo(tree)
    return ImageConfig(env=env or {}, user=chosen, workdir=_make_workdir(tree, workdir))


def _is_directory(tree: ConfinedTree, path: str) -> bool:
    found = tree.look(path)
    return found is not None and stat.S_ISDIR(found.st_mode)


def _allow_sudo(tree: ConfinedTree) -> None:
    """A line at the end: the last rule that matches is the one sudo obeys."""
    if tree.look("usr/bin/sudo") is None:
        return
    with suppress(OSError):
        content = (tree.read("etc/sudoers") or b"root ALL=(ALL:ALL) ALL\n").decode(errors="surrogateescape")
        if SUDO_RULE not in content:
            tree.write("etc/sudoers", f"{content.rstrip()}\n{SUDO_DEFAULTS}{SUDO_RULE}", 0o440)


def _make_workdir(tree: ConfinedTree, wish: str) -> str:
    """The image's working directory, made when it is missing, as every runtime of images does."""
    if not wish:
        return HOME
    path = posixpath.normpath(posixpath.join("/", wish))
    path = "/" + path.lstrip("/")
    try:
        if path != "/" and not _is_directory(tree, path):
            with tree.parent(path) as (fd, name):
                os.mkdir(name, 0o755, dir_fd=fd)
    except (OSError, ValueError) as failure:
        raise _no_workdir(wish, _reason(failure)) from failure
    _require_seen(tree, path)
    return path


def _require_seen(tree: ConfinedTree, path: str) -> None:
    """What lies below a mount of the sandbox, also by a link of the image, is hidden by it."""
    try:
        with tree.directory(path) as fd:
            place = posixpath.relpath(os.readlink(f"/proc/self/fd/{fd}"), os.readlink(f"/proc/self/fd/{tree.fd}"))
    except OSError as failure:
        raise _no_workdir(path, _reason(failure)) from failure
    top = place.partition("/")[0]
    if top in _KERNELS and place not in (*_KERNELS, "dev/shm"):
        raise _no_workdir(path, f"what the image has below /{top} is hidden in a sandbox")


def _reason(failure: OSError | ValueError) -> str:
    return (isinstance(failure, OSError) and failure.strerror) or str(failure)[:200]


def _no_workdir(wish: str, why: str) -> TemplatePrepareFailure:
    detail = f"the image's working directory {wish[:200]!r} cannot be made: {why}"
    return TemplatePrepareFailure(TemplateFault.DEFAULT_WORKDIR_MISSING, detail)


def sweep(tree: ConfinedTree) -> int:
    """Remove device nodes and foreign attributes from the whole tree. Returns how many nodes that were.

    Nothing runs in the tree yet, so a name that was looked at stays what it was.
    """
    removed = 0
    _strip_attributes(f"/proc/self/fd/{tree.fd}/.")
    for fd, name, status in _entries(tree):
        if stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
            os.unlink(name, dir_fd=fd)
            removed += 1
        else:
            _strip_attributes(f"/proc/self/fd/{fd}/{name}")
    return removed


def _entries(tree: ConfinedTree) -> Iterator[tuple[int, str, os.stat_result]]:
    """Each entry below the root: a descriptor of its directory, its name and status."""
    pending = [""]
    while pending:
        path = pending.pop()
        with tree.directory(path) as fd:
            for name in os.listdir(fd):
                status = os.stat(name, dir_fd=fd, follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    pending.append(f"{path}/{name}")
                yield fd, name, status


def _strip_attributes(path: str) -> None:
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError as failure:
        if failure.errno in (errno.ENOTSUP, errno.ENODATA):
            return
        raise
    for name in names:
        if name.startswith(_FOREIGN_ATTRIBUTES):
            os.removexattr(path, name, follow_symlinks=False)
