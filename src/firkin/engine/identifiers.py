"""Names for new things: unguessable, never given twice."""

from __future__ import annotations

import secrets
from collections.abc import Callable

from firkin.law.ids import SandboxId

_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"
_LENGTH = 20  # 36**20 is 103 bits: no guessing, and no repetition once old records are pruned


def new_sandbox_id(taken: Callable[[str], bool]) -> SandboxId:
    """``i`` and twenty random characters; `taken` says which names are in use."""
    while True:
        text = "i" + "".join(secrets.choice(_ALPHABET) for _ in range(_LENGTH))
        if not taken(text):
            return SandboxId(text)
