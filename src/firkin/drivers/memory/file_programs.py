"""Programs that change files, in an instance in memory."""

from __future__ import annotations

import posixpath
from collections.abc import Awaitable, Callable, Mapping

from firkin.drivers.memory.accounts import account, group_name, owner_name
from firkin.drivers.memory.calls import Call
from firkin.drivers.memory.tree import DIRECTORY, FILE, SYMLINK, Fault, Node

_LETTERS = {FILE: "-", DIRECTORY: "d", SYMLINK: "l"}


def _words(call: Call) -> tuple[str, list[str]]:
    flags = "".join(word[1:] for word in call.argv[1:] if word.startswith("-") and len(word) > 1)
    return flags, [word for word in call.argv[1:] if not word.startswith("-") or len(word) == 1]


async def _each(call: Call, names: list[str], act: Callable[[str], None]) -> int:
    """Apply `act` to each path; complain of those that fail and go on."""
    status = 0
    for name in names:
        try:
            act(call.path(name))
        except Fault as fault:
            status = await call.fail(f"{name}: {fault.message}")
    return status


async def _mkdir(call: Call) -> int:
    flags, names = _words(call)
    tree, who = call.machine.tree, call.process.account

    def make(path: str) -> None:
        if "p" in flags:
            tree.make_directory(path, uid=who.uid, gid=who.gid)
            return
        real, node = tree.seek(path)
        if node is not None:
            raise Fault("exists", "File exists")
        call.permit(tree.parent(real)[1], 2)
        tree.add(real, Node(DIRECTORY, 0o755, who.uid, who.gid))

    return await _each(call, names, make)


async def _touch(call: Call) -> int:
    def touch(path: str) -> None:
        call.open_sink(path, append=True)

    return await _each(call, _words(call)[1], touch)


async def _rm(call: Call) -> int:
    flags, names = _words(call)
    tree = call.machine.tree

    def remove(path: str) -> None:
        real, node = tree.seek(path, follow=False)
        if node is None:
            if "f" in flags:
                return
            raise Fault("not_found", "No such file or directory")
        if node.kind == DIRECTORY and "r" not in flags.lower():
            raise Fault("is_directory", "Is a directory")
        call.permit(tree.parent(real)[1], 2)
        tree.drop(real)

    return await _each(call, names, remove)


async def _ls(call: Call) -> int:
    flags, names = _words(call)
    tree = call.machine.tree
    for name in names or ["."]:
        try:
            _, node = tree.locate(call.path(name))
        except Fault:
            return await call.fail(f"cannot access {name!r}: No such file or directory", 2)
        found = sorted(node.children.items()) if node.kind == DIRECTORY and "d" not in flags else [(name, node)]
        for child, entry in found:
            if "a" in flags or not child.startswith(".") or entry is node:
                await call.say(_long(call, child, entry) if "l" in flags else child + "\n")
    return 0


def _long(call: Call, name: str, node: Node) -> str:
    rights = "".join(letter if node.mode >> (8 - index) & 1 else "-" for index, letter in enumerate("rwxrwxrwx"))
    owner, group = owner_name(call.machine.tree, node.uid), group_name(call.machine.tree, node.gid)
    arrow = f" -> {node.target}" if node.kind == SYMLINK else ""
    return f"{_LETTERS.get(node.kind, 'c')}{rights} 1 {owner} {group} {node.size} {name}{arrow}\n"


async def _mv(call: Call) -> int:
    _, names = _words(call)
    if len(names) != 2:
        return await call.fail("two names are needed")
    tree = call.machine.tree
    source, node = tree.seek(call.path(names[0]), follow=False)
    if node is None:
        return await call.fail(f"cannot stat {names[0]!r}: No such file or directory")
    target, there = tree.seek(call.path(names[1]))
    if there is not None and there.kind == DIRECTORY:
        target = posixpath.join(target, posixpath.basename(source))
    tree.move(source, target)
    return 0


async def _ln(call: Call) -> int:
    flags, names = _words(call)
    if "s" not in flags or len(names) != 2:
        return await call.fail("only 'ln -s TARGET NAME' is offered in memory")
    who = call.process.account
    real, node = call.machine.tree.seek(call.path(names[1]), follow=False)
    if node is not None:
        return await call.fail(f"{names[1]}: File exists")
    link = Node(SYMLINK, 0o777, who.uid, who.gid)
    link.target = names[0]
    call.machine.tree.add(real, link)
    return 0


async def _chmod(call: Call) -> int:
    _, names = _words(call)
    tree = call.machine.tree

    def change(path: str) -> None:
        real, node = tree.locate(path)
        if call.process.account.uid not in (0, node.uid):
            raise Fault("permission", "Operation not permitted")
        mode = names[0]
        bits = {"+x": node.mode | 0o111, "-x": node.mode & ~0o111, "u+x": node.mode | 0o100}
        node.mode = bits[mode] if mode in bits else int(mode, 8)
        tree.changed("chmod", real)

    try:
        return await _each(call, names[1:], change)
    except ValueError:
        return await call.fail(f"invalid mode: {names[0]!r}")


async def _chown(call: Call) -> int:
    _, names = _words(call)
    tree = call.machine.tree
    who = account(tree, names[0].partition(":")[0]) if names else call.process.account

    def change(path: str) -> None:
        if call.process.account.uid != 0:
            raise Fault("permission", "Operation not permitted")
        real, node = tree.locate(path)
        node.uid, node.gid = who.uid, who.gid
        tree.changed("chmod", real)

    return await _each(call, names[1:], change)


async def _stat(call: Call) -> int:
    """``stat -c FORMAT FILE`` with %a, %U, %G, %s and %u."""
    words = call.argv[1:]
    if len(words) != 3 or words[0] != "-c":
        return await call.fail("only 'stat -c FORMAT FILE' is offered in memory")
    tree = call.machine.tree
    try:
        _, node = tree.locate(call.path(words[2]), follow=False)
    except Fault as fault:
        return await call.fail(f"cannot statx {words[2]!r}: {fault.message}")
    owner, group = owner_name(tree, node.uid), group_name(tree, node.gid)
    values = {"%a": f"{node.mode:o}", "%U": owner, "%G": group, "%s": str(node.size), "%u": str(node.uid)}
    text = words[1]
    for mark, value in values.items():
        text = text.replace(mark, value)
    await call.say(text + "\n")
    return 0


FILE_PROGRAMS: Mapping[str, Callable[[Call], Awaitable[int]]] = {
    "mkdir": _mkdir,
    "touch": _touch,
    "rm": _rm,
    "ls": _ls,
    "mv": _mv,
    "ln": _ln,
    "chmod": _chmod,
    "chown": _chown,
    "stat": _stat,
}
