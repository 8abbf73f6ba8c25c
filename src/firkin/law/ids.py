"""Identifiers: opaque, checked once, then trusted.

An identifier is a `str` that has passed its rule, so a function that receives
one never checks it again. Identifiers become file and cgroup names, which is
why `.` and `..` are refused although the character set would allow them. (Not
so the tags of processes, which are E2B's free text.)
"""

from __future__ import annotations

import re
import secrets
from typing import ClassVar, Self

from firkin.law.errors import InvalidReason, InvalidSpec

MAX_ID_LENGTH = 128
_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"
_FRESH_LENGTH = 20


class Identifier(str):
    """A non-empty name of at most 128 characters out of ``[A-Za-z0-9_.-]``.

    Raises `InvalidSpec` (reason `INVALID_ID`) when the text breaks the rule.
    """

    __slots__ = ()
    kind: ClassVar[str] = "id"
    rule: ClassVar[re.Pattern[str]] = re.compile(r"(?!\.{1,2}\Z)[A-Za-z0-9_.-]+")
    rule_text: ClassVar[str] = "letters, digits, '_', '-' and '.'"
    max_length: ClassVar[int] = MAX_ID_LENGTH

    def __new__(cls, text: str) -> Self:
        if not text:
            raise _invalid(f"{cls.kind} is empty")
        if len(text) > cls.max_length:
            raise _invalid(f"{cls.kind} has {len(text)} characters; at most {cls.max_length} are allowed")
        if cls.rule.fullmatch(text) is None:
            raise _invalid(f"{cls.kind} {text[:64]!r} is not allowed; use {cls.rule_text}")
        return super().__new__(cls, text)


def _invalid(detail: str) -> InvalidSpec:
    return InvalidSpec("validate id", InvalidReason.INVALID_ID, detail)


class RuntimeId(Identifier):
    __slots__ = ()
    kind = "runtime id"


class SandboxId(Identifier):
    """Lower-case letters and digits only: it is a host-name label and a cgroup name."""

    __slots__ = ()
    kind = "sandbox id"
    rule = re.compile(r"[a-z0-9]+")
    rule_text = "lower-case letters and digits"
    max_length = 48


def fresh_sandbox_id() -> SandboxId:
    """``i`` and twenty random characters: 103 bits, no guessing and no repetition."""
    number, letters = secrets.randbelow(len(_ALPHABET) ** _FRESH_LENGTH), ["i"]
    for _ in range(_FRESH_LENGTH):
        number, at = divmod(number, len(_ALPHABET))
        letters.append(_ALPHABET[at])
    return SandboxId("".join(letters))


class TemplateId(Identifier):
    __slots__ = ()
    kind = "template id"


class TemplateBuildId(Identifier):
    __slots__ = ()
    kind = "template build id"


class SnapshotId(Identifier):
    __slots__ = ()
    kind = "snapshot id"


class ProcessId(Identifier):
    """A process's id as seen inside its sandbox, in decimal. Scoped to one sandbox."""

    __slots__ = ()
    kind = "process id"
    rule = re.compile(r"[1-9][0-9]{0,9}")
    rule_text = "a decimal process number"


class ProcessTag(Identifier):
    """Whatever its starter calls it. Never the name of anything on the host."""

    __slots__ = ()
    kind = "process tag"
    rule = re.compile(r"[^\x00-\x1f\x7f-\x9f]+")
    rule_text = "anything but control characters"
    max_length = 1024


class VolumeId(Identifier):
    __slots__ = ()
    kind = "volume id"


class VolumeName(Identifier):
    """What its owner calls a volume; unique for him."""

    __slots__ = ()
    kind = "volume name"
    rule = re.compile(r"[A-Za-z0-9_-]+")
    rule_text = "letters, digits, '_' and '-'"


class SecretId(Identifier):
    __slots__ = ()
    kind = "secret id"
    rule = re.compile(r"sec_[0-9a-z]+")
    rule_text = "sec_, then lower-case letters and digits"


class SecretName(Identifier):
    """What its owner calls a secret, in lower case: it stands in ``${e2b.secrets.NAME}``."""

    __slots__ = ()
    kind = "secret name"
    rule = re.compile(r"(?!sec_)[^{}\x00-\x1f\x7f-\x9fA-Z]+")
    rule_text = "anything but '{', '}' and control characters, and no name that begins with sec_"

    def __new__(cls, text: str) -> Self:
        return super().__new__(cls, text.lower())


class PortName(Identifier):
    __slots__ = ()
    kind = "port name"


class WarmPoolKey(Identifier):
    __slots__ = ()
    kind = "warm-pool key"


class BackendName(Identifier):
    __slots__ = ()
    kind = "backend name"
