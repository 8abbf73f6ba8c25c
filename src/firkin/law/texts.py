"""Text that can be kept and told: all that is written down is UTF-8, which a `str` need not be.

Python makes halves of surrogate pairs of bytes that are no UTF-8 (PEP 383), so
`os.environ`, `sys.argv` and the names of files can hold them. To programs they are
given as the bytes that they were; in a record they could not be written.
"""

from __future__ import annotations

from collections.abc import Mapping

from firkin.law.errors import InvalidReason, InvalidSpec

NOT_UNICODE = "is not Unicode text and could not be kept; leave it out, or encode those bytes, as base64 say"


def check_text(operation: str, reason: InvalidReason, what: str, value: str | Mapping[str, str] | None) -> None:
    """`InvalidSpec` for text that cannot be kept: `value` itself, or a name or a value in it.

    The text is not repeated, only the name under which it stands: it may be a secret.
    """
    if isinstance(value, str):
        if not _is_unicode(value):
            raise InvalidSpec(operation, reason, f"the {what} {NOT_UNICODE}")
        return
    for name, text in (value or {}).items():
        if not (_is_unicode(name) and _is_unicode(text)):
            raise InvalidSpec(operation, reason, f"{name[:64]!r} in the {what} {NOT_UNICODE}")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
