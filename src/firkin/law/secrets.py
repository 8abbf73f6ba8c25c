"""Secrets: words that go out in a header's place and are never seen inside.

A value is handed in and never handed out again: no control, record or event has
it. Only the egress gateway of its owner puts it on the wire, to the hosts that a
policy's rules name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from firkin.law.errors import InvalidReason, InvalidSpec
from firkin.law.ids import SecretId, SecretName

SECRET_PLACEHOLDER = re.compile(r"\$\{e2b\.secrets\.([^{}\x00-\x1f\x7f-\x9f]{1,128})\}")
MAX_SECRET_BYTES = 8192
MAX_SECRETS = 1000
_MAX_ENTRIES, _MAX_KEY, _MAX_VALUE, _MAX_METADATA = 32, 128, 1024, 8192
_UNFIT = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")  # a header's value has none of these (RFC 9110 5.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretSpec:
    """A secret to keep. `name` is unique for its `owner`; `value` is one line."""

    name: SecretName
    value: str = field(repr=False)
    owner: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_secret_value(self.value)
        check_secret_metadata(self.metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretInfo:
    """A secret without its value. `version` counts the values that it has had."""

    id: SecretId
    name: SecretName
    created_at: datetime
    updated_at: datetime
    version: int = 1
    owner: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)


class SecretControl(Protocol):
    """Each verb is for one owner: another owner's secret and none at all are the same `NotFound`."""

    async def create(self, spec: SecretSpec) -> SecretInfo:
        """`AlreadyExists` for a taken name, `CapacityRejected` beyond `MAX_SECRETS`."""
        ...

    async def update(
        self, owner: str, secret: str, value: str, metadata: Mapping[str, str] | None = None
    ) -> SecretInfo:
        """A new value for the secret of that id or name, at once for running sandboxes too. No `metadata` keeps it."""
        ...

    async def get(self, owner: str, secret: str) -> SecretInfo:
        """By id or name."""
        ...

    async def list(self, owner: str) -> Sequence[SecretInfo]:
        """Newest first."""
        ...

    async def delete(self, owner: str, secret: str) -> None:
        """By id or name. Requests that would have carried it are refused from now on."""
        ...


def named_secrets(values: Iterable[str]) -> frozenset[str]:
    """The names, in lower case, of the secrets that these values of headers hold."""
    return frozenset(name.lower() for value in values for name in SECRET_PLACEHOLDER.findall(value))


def check_secret_value(value: str) -> None:
    """`InvalidSpec` unless it can stand in a header. The text of the error has nothing of it."""
    if not value or len(value.encode(errors="replace")) > MAX_SECRET_BYTES:
        raise _invalid(f"the value of a secret must have 1 to {MAX_SECRET_BYTES} bytes")
    if _UNFIT.search(value) or value != value.strip():
        raise _invalid("the value of a secret must be one line, without control characters or spaces at its ends")


def check_secret_metadata(metadata: Mapping[str, str]) -> None:
    """`InvalidSpec` beyond E2B's limits."""
    sizes = [(len(key.encode()), len(value.encode())) for key, value in metadata.items()]
    if len(sizes) > _MAX_ENTRIES or any(key > _MAX_KEY or value > _MAX_VALUE for key, value in sizes):
        raise _invalid(
            f"the metadata of a secret has at most {_MAX_ENTRIES} entries,"
            f" with keys of {_MAX_KEY} and values of {_MAX_VALUE} bytes"
        )
    if sum(map(sum, sizes)) > _MAX_METADATA:
        raise _invalid(f"the metadata of a secret has at most {_MAX_METADATA} bytes")


def _invalid(detail: str) -> InvalidSpec:
    return InvalidSpec("keep a secret", InvalidReason.INVALID_SECRET, detail)
