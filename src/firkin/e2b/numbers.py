"""Whole numbers out of what clients send: ASCII digits alone, and no more than a machine's integer has.

`str.isdigit` takes digits of any script, of which `int` refuses some, and `int` refuses
a number of more than 4300 digits: either would be a fault of ours.
"""

from __future__ import annotations

import re

_WHOLE = re.compile(r"-?[0-9]{1,18}")


def read_whole(text: str | bytes) -> int | None:
    """The number that `text` is; None when it is none, or longer than 18 digits."""
    digits = text.decode("latin-1") if isinstance(text, bytes) else text
    return int(digits) if _WHOLE.fullmatch(digits) else None
