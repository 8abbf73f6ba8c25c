"""Users and groups, read from the sandbox's own /etc/passwd and /etc/group.

Never through NSS: it would load libraries. The files are the guest's to write,
so they may be huge, broken or no files at all.
"""

from __future__ import annotations

import os
import stat

from firkin.guest.faults import Refused

_MOST_BYTES = 1 << 20
_LARGEST_ID = (1 << 32) - 2
_LONGEST_SHOWN = 256  # Linux's LOGIN_NAME_MAX: every entry of a list repeats the name


class Account:
    __slots__ = ("gid", "groups", "home", "name", "shell", "uid")

    def __init__(self, name: str, uid: int, gid: int, home: str, shell: str, groups: tuple[int, ...]) -> None:
        self.name = name
        self.uid = uid
        self.gid = gid
        self.home = home
        self.shell = shell
        self.groups = groups


class _Table:
    """The lines of one file, split at colons; read again when the file has changed."""

    __slots__ = ("_path", "_stamp", "names", "rows")

    def __init__(self, path: str) -> None:
        self._path = path
        self._stamp: tuple[int, int, int, int] | None = None
        self.rows: list[list[str]] = []
        self.names: dict[int, str] = {}

    def refresh(self) -> None:
        try:
            status = os.stat(self._path)
            stamp = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)
        except OSError:
            stamp = None
        if stamp == self._stamp:
            return
        self._stamp = stamp
        self.rows = [] if stamp is None else self._read()
        self.names = _names(self.rows)

    def _read(self) -> list[list[str]]:
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError:
            return []
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return []
            content = os.read(fd, _MOST_BYTES)
        except OSError:
            return []
        finally:
            os.close(fd)
        return [line.split(":") for line in os.fsdecode(content).split("\n") if line and line[0] != "#"]


def _number(text: str) -> int:
    """The id in `text`, -1 when there is none."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 11 and int(text) <= _LARGEST_ID else -1


class Accounts:
    __slots__ = ("_groups", "_users")

    def __init__(self, passwd: str = "/etc/passwd", group: str = "/etc/group") -> None:
        self._users = _Table(passwd)
        self._groups = _Table(group)

    def lookup(self, name: str) -> Account:
        """The account called `name`, "" for root. `Refused` (no_user) when there is none."""
        wanted = name or "root"
        self._users.refresh()
        for row in self._users.rows:
            if row[0] == wanted and len(row) >= 7 and _number(row[2]) >= 0 and _number(row[3]) >= 0:
                uid, gid = _number(row[2]), _number(row[3])
                return Account(wanted, uid, gid, row[5] or "/", row[6] or "/bin/sh", self._memberships(wanted, gid))
        if wanted == "root":  # an image without accounts still has one
            return Account("root", 0, 0, "/root", "/bin/sh", (0,))
        raise Refused("no_user", f"user {wanted!r} does not exist")

    def _memberships(self, name: str, gid: int) -> tuple[int, ...]:
        self._groups.refresh()
        found = {gid}
        for row in self._groups.rows:
            if len(row) >= 4 and name in row[3].split(",") and _number(row[2]) >= 0:
                found.add(_number(row[2]))
        return tuple(sorted(found))[:65536]

    def refresh(self) -> None:
        """Before a series of `owner` and `group`."""
        self._users.refresh()
        self._groups.refresh()

    def owner(self, uid: int) -> str:
        return self._users.names.get(uid) or str(uid)

    def group(self, gid: int) -> str:
        return self._groups.names.get(gid) or str(gid)


def _names(rows: list[list[str]]) -> dict[int, str]:
    names: dict[int, str] = {}
    for row in rows:
        if len(row) >= 3 and len(row[0]) <= _LONGEST_SHOWN:
            names.setdefault(_number(row[2]), row[0])
    return names
