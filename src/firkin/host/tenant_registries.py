"""Which registries this machine asks on behalf of tenants, and with whose credentials.

A registry is dialled from the operator's network, and may lead whoever asks it to any
address (by the realm of its 401). So tenants name only hosts that are known: never an
address, never a name that this machine or its neighbours answer to.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from firkin.host.image_names import ImageName, canonical_registry

_AMAZON = "*.dkr.ecr.*.amazonaws.com"
# Names below amazonaws.com are also those of other people's buckets and machines.
_OF_AMAZON = re.compile(r"[0-9]{12}\.dkr\.ecr(?:-fips)?\.[a-z]{2}(?:-[a-z]+)+-[0-9]{1,2}\.amazonaws\.com(?:\.cn)?")
PUBLIC_REGISTRIES = (
    "docker.io",
    "quay.io",
    "ghcr.io",
    "gcr.io",
    "*.gcr.io",
    "*.pkg.dev",
    "public.ecr.aws",
    _AMAZON,
    "*.azurecr.io",
    "registry.k8s.io",
    "mcr.microsoft.com",
    "registry.gitlab.com",
)
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_KNOWN = re.compile(rf"(?:\*\.)?(?P<name>{_LABEL}(?:\.{_LABEL})+)(?::[0-9]{{1,5}})?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")  # as the last label: the whole is an address, however it is written
_HTTPS = ":443"


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantRegistries:
    """`registries`: ``HOST[:PORT]``, ``*.DOMAIN[:PORT]`` for all below it. `use_auth_file`: the operator's credentials
    are theirs as well."""

    registries: tuple[str, ...] = PUBLIC_REGISTRIES
    use_auth_file: bool = False

    def know(self, name: ImageName) -> bool:
        host = name.repository.partition("/")[0].lower().removesuffix(_HTTPS)
        return may_be_known(host) and any(_matches(pattern, host) for pattern in self.registries)


def may_be_known(pattern: str) -> bool:
    """Whether it is a registry that tenants can ever name, or a pattern of such. No address is, and no local name."""
    found = _KNOWN.fullmatch(pattern)
    if pattern == _AMAZON:
        return True
    return found is not None and not _is_local(found["name"].split("."))


def _is_local(labels: Iterable[str]) -> bool:
    *_, last = labels
    return _NUMBER.fullmatch(last) is not None or last in ("localhost", "localdomain")


def _matches(pattern: str, host: str) -> bool:
    if pattern == _AMAZON:
        return _OF_AMAZON.fullmatch(host) is not None
    pattern = canonical_registry(pattern.removesuffix(_HTTPS))
    return host.endswith(pattern[1:]) if pattern.startswith("*.") else host == pattern
