"""Paths as E2B's clients write them: absolute, relative to the user's home, or with a tilde."""

from __future__ import annotations

import posixpath

from firkin.law.errors import InvalidReason, InvalidSpec
from firkin.law.files import SandboxPath
from firkin.law.processes import GuestUser
from firkin.law.sandboxes import SandboxInfo


def needs_home(path: str) -> bool:
    return not path.startswith("/")


def resolve(path: str, user: GuestUser, info: SandboxInfo) -> SandboxPath:
    """An absolute, tidied path. Empty is where a command of that user begins. Raises `InvalidSpec`.

    ``..`` is removed by its text alone, as the clients expect; what links lead
    to is the sandbox's own matter.
    """
    if not path:
        return SandboxPath(_begins_in(user, info))
    if path.startswith("~"):
        path = _from_tilde(path, user)
    elif not path.startswith("/"):
        path = posixpath.join(user.home, path)
    tidy = posixpath.normpath(path)
    return SandboxPath(tidy[1:] if tidy.startswith("//") else tidy)


def _begins_in(user: GuestUser, info: SandboxInfo) -> str:
    """E2B gives every user the template's directory. Here that is its own user's alone: another may not even be
    allowed to enter it, and a command of his begins at home. Files of no path are where commands of no cwd begin.
    """
    return info.default_workdir if user.name == info.default_user else user.home


def _from_tilde(path: str, user: GuestUser) -> str:
    if path == "~":
        return user.home
    if not path.startswith("~/"):
        raise InvalidSpec(
            "resolve a path", InvalidReason.INVALID_PATH, f"cannot expand {path[:64]!r}: only '~' and '~/…' are known"
        )
    return posixpath.join(user.home, path[2:])
