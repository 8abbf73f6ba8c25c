"""Where an instance's first files come from: a template's directory, read into memory; and who it is.

Host directories that a template shows through (`shared`) appear empty: nothing
of the host is reachable from a sandbox in memory.
"""

from __future__ import annotations

import asyncio
import os
import posixpath
import shutil
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from firkin.drivers.memory.tree import DIRECTORY, FILE, OTHER, SYMLINK, Fault, Node, Tree
from firkin.law.driver import PreparedRoot, RootFilesystem
from firkin.law.errors import TemplateFault, TemplatePrepareFailure
from firkin.law.templates import HostSource, ImageConfig, LocalSource, TemplateSpec, describe_source

MAX_NODES = 20_000

_PASSWD = "root:x:0:0:root:/root:/bin/bash\nuser:x:1000:1000::/home/user:/bin/bash\n"
_GROUP = "root:x:0:\nuser:x:1000:\n"
_HOSTS = "127.0.0.1 localhost\n::1 localhost\n127.0.1.1 {hostname}\n"
_BOOT_ID = "/proc/sys/kernel/random/boot_id"


class MemoryRootPreparer:
    """A `RootPreparer` that needs nothing: an empty root for `HostSource`, a copy for a `LocalSource` folder."""

    async def prepare(self, spec: TemplateSpec, into: Path, report: Callable[[str], None]) -> PreparedRoot:
        report(f"preparing {describe_source(spec.source)}")
        base = into / "rootfs"
        match spec.source:
            case HostSource():
                await asyncio.to_thread(base.mkdir)
            case LocalSource(path):
                await asyncio.to_thread(_copy_folder, path, base)
            case _:
                raise TemplatePrepareFailure(
                    TemplateFault.UNSUPPORTED_IMAGE_CONFIG,
                    f"roots in memory come from 'host' or a local folder, not from {describe_source(spec.source)!r}",
                )
        return PreparedRoot(
            root=RootFilesystem(base=str(base)),
            config=ImageConfig(),
            size_bytes=await asyncio.to_thread(_size, base),
            digest=describe_source(spec.source),
        )


def _copy_folder(path: str, base: Path) -> None:
    if not os.path.isdir(path):
        raise TemplatePrepareFailure(TemplateFault.SOURCE_MISSING, f"{path!r} is not a directory")
    shutil.copytree(path, base, symlinks=True)


def _size(base: Path) -> int:
    return sum(os.lstat(os.path.join(folder, name)).st_size for folder, _, names in os.walk(base) for name in names)


def load(tree: Tree, root: RootFilesystem, programs: list[str]) -> None:
    """Fill `tree` from the template and add what every instance has. `Fault` when it is too large."""
    if os.path.isdir(root.base):
        _load_folder(tree, root.base, tree.root, [MAX_NODES])
    for inside in root.shared:
        tree.make_directory(inside)
    _furnish(tree, programs)


def _load_folder(tree: Tree, folder: str, into: Node, budget: list[int]) -> None:
    with os.scandir(folder) as entries:
        for entry in entries:
            budget[0] -= 1
            if budget[0] < 0:
                raise Fault("limit", f"the template has more than {MAX_NODES} files; use another driver for it")
            node = _load_node(tree, entry)
            into.children[entry.name] = node
            if node.kind == DIRECTORY:
                _load_folder(tree, entry.path, node, budget)


def _load_node(tree: Tree, entry: os.DirEntry[str]) -> Node:
    status = entry.stat(follow_symlinks=False)
    kinds = {stat.S_IFREG: FILE, stat.S_IFDIR: DIRECTORY, stat.S_IFLNK: SYMLINK}
    kind = kinds.get(stat.S_IFMT(status.st_mode), OTHER)
    node = Node(kind, stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid)
    if kind == SYMLINK:
        node.target = os.readlink(entry.path)
    elif kind == FILE:
        tree.resize(node, status.st_size)
        tree.overwrite(node, Path(entry.path).read_bytes()[: status.st_size])
    return node


def _furnish(tree: Tree, programs: list[str]) -> None:
    tree.make_directory("/home")
    for path in ("/usr/bin", "/etc", "/dev", "/proc", "/var/tmp", "/root"):
        tree.make_directory(path)
    if tree.seek("/home/user", follow=False)[1] is None:
        tree.make_directory("/home/user", uid=1000, gid=1000)
    tree.make_directory("/tmp").mode = 0o1777
    for path, text in (("/etc/passwd", _PASSWD), ("/etc/group", _GROUP)):
        if tree.seek(path)[1] is None:
            tree.overwrite(tree.make_file(path), text.encode())
    if tree.seek("/dev/null")[1] is None:
        tree.add("/dev/null", Node(OTHER, 0o666))
    for path in ("/bin", "/sbin"):
        if tree.seek(path, follow=False)[1] is None:
            link = Node(SYMLINK, 0o777)
            link.target = "usr/bin"
            tree.add(path, link)
    for name in programs:
        _install(tree, name)


def _install(tree: Tree, name: str) -> None:
    real, node = tree.seek(f"/usr/bin/{name}", follow=False)
    if node is None:
        node = tree.make_file(real, 0o755)
        node.program = name


def identify(tree: Tree, *, hostname: str, machine_id: str, boot_id: str) -> None:
    """Say inside who it is. ``/proc`` is made anew; a tree that has no place for the rest goes without it."""
    tree.root.children["proc"] = Node(DIRECTORY, 0o555)
    tree.make_directory(posixpath.dirname(_BOOT_ID), mode=0o555)
    tree.overwrite(tree.make_file(_BOOT_ID, 0o444), f"{boot_id}\n".encode())
    texts = {"/etc/hostname": f"{hostname}\n", "/etc/hosts": _HOSTS.format(hostname=hostname)}
    if machine_id:
        texts["/etc/machine-id"] = f"{machine_id}\n"
    for path, text in texts.items():
        with suppress(Fault):  # what an earlier life did to its own /etc keeps nobody from booting
            _say(tree, path, text)


def _say(tree: Tree, path: str, text: str) -> None:
    real, node = tree.seek(path)
    if node is None:
        node = tree.make_file(real)
    if node.kind == FILE:
        tree.overwrite(node, text.encode())
