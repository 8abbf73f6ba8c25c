"""Accounts of an instance, as its own /etc/passwd and /etc/group say."""

from __future__ import annotations

from dataclasses import dataclass

from firkin.drivers.memory.tree import Fault, Tree


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    name: str
    uid: int
    gid: int
    home: str
    shell: str


def _lines(tree: Tree, path: str, fields: int) -> list[list[str]]:
    _, node = tree.seek(path)
    if node is None:
        return []
    rows = [line.split(":") for line in node.data.decode("utf-8", "surrogateescape").splitlines()]
    return [row for row in rows if len(row) >= fields and row[2].isdigit()]


def account(tree: Tree, name: str) -> Account:
    """The account of that name, "" being root; `Fault` (``no_user``) otherwise."""
    for row in _lines(tree, "/etc/passwd", 7):
        if row[0] == (name or "root") and row[3].isdigit():
            return Account(name=row[0], uid=int(row[2]), gid=int(row[3]), home=row[5], shell=row[6] or "/bin/sh")
    raise Fault("no_user", f"there is no user {name!r}")


def owner_name(tree: Tree, uid: int) -> str:
    return _name_of(tree, "/etc/passwd", 7, uid)


def group_name(tree: Tree, gid: int) -> str:
    return _name_of(tree, "/etc/group", 3, gid)


def _name_of(tree: Tree, path: str, fields: int, number: int) -> str:
    return next((row[0] for row in _lines(tree, path, fields) if int(row[2]) == number), str(number))
