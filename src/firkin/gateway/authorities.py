"""Certificates that a sandbox is shown for the hosts of its rules.

Each sandbox trusts an authority of its own, which may sign for the domains of its
rules and nothing else. Leaves live for days and are made anew after hours; all
begin in the past, since clocks differ. Ages are counted by the clock that certificates are
judged by: it jumps, and goes on while a machine sleeps.
"""

from __future__ import annotations

import datetime
from collections.abc import Collection
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from firkin.host import certificates

CLOCKS_DIFFER = datetime.timedelta(days=2)
_CA_LIFE = datetime.timedelta(days=398)
_CA_KEPT = datetime.timedelta(days=180)
_LEAF_LIFE = datetime.timedelta(days=7)


@dataclass(frozen=True, slots=True, kw_only=True)
class Authority:
    """PEM texts. `certificate` is what the sandbox trusts."""

    certificate: str
    key: str = field(repr=False)
    made_at: datetime.datetime

    def serves(self, now: datetime.datetime) -> bool:
        """Whether it is to be kept: far from its end, and not from a time that has not come."""
        return self.made_at - CLOCKS_DIFFER / 2 <= now < self.made_at + _CA_KEPT


def new_authority(domains: Collection[str], now: datetime.datetime | None = None) -> Authority:
    """An authority that may sign for `domains` (``a.example``, ``*.example``) alone."""
    made_at = now or certificates.now()
    key = certificates.new_key()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Firkin egress of this sandbox")])
    begin = made_at - CLOCKS_DIFFER
    wanted = sorted({domain.lower().removeprefix("*.") for domain in domains})
    permitted = [] if "*" in wanted else [x509.DNSName(domain) for domain in wanted]
    made = certificates.authority(key, name, (begin, begin + _CA_LIFE), permitted)
    return Authority(certificate=certificates.pem(made), key=certificates.key_pem(key), made_at=made_at)


class Issuer:
    """Signs leaves with an `Authority`."""

    def __init__(self, certificate: str, key: str) -> None:
        self._certificate = x509.load_pem_x509_certificate(certificate.encode())
        loaded = serialization.load_pem_private_key(key.encode(), None)
        assert isinstance(loaded, ec.EllipticCurvePrivateKey)
        self._key = loaded

    def leaf(self, name: str, now: datetime.datetime | None = None) -> str:
        """A certificate for `name` and its key, as one PEM text."""
        key = certificates.new_key()
        begin = (now or certificates.now()) - CLOCKS_DIFFER
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
        life, names = (begin, begin + _LEAF_LIFE), [x509.DNSName(name)]
        made = certificates.leaf(key, subject, life, names, issuer=self._certificate, issuer_key=self._key)
        return certificates.key_pem(key) + certificates.pem(made)
