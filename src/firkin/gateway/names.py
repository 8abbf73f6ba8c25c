"""Names of hosts, as a guest says them and as a policy writes them."""

from __future__ import annotations

import re
from collections.abc import Iterable

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"(?=.{{1,253}}\Z)(?:{_LABEL}\.)*{_LABEL}")
_NUMERIC_END = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)\Z")


def clean_name(raw: bytes) -> str | None:
    """The name in its one form (lower case, no dot at its end), or None for what is no name of a host.

    What ends in a number is an address in one of its many spellings (WHATWG URL, "ends in a number"), and no name.
    """
    try:
        text = raw.decode("ascii").lower().removesuffix(".")
    except UnicodeDecodeError:
        return None
    return text if _NAME.fullmatch(text) and not _NUMERIC_END.fullmatch(text) else None


def matches(pattern: str, name: str) -> bool:
    """``*`` is every name, ``*.a.b`` everything below ``a.b`` at any depth but not itself."""
    if pattern.startswith("*."):
        return name.endswith(pattern[1:]) and len(name) > len(pattern) - 1
    return pattern in ("*", name)


def most_specific(patterns: Iterable[str], name: str) -> str | None:
    """The pattern that decides for `name`: the exact one, else the longest."""
    fitting = [pattern for pattern in patterns if matches(pattern, name)]
    return max(fitting, key=lambda pattern: (pattern == name, len(pattern)), default=None)
