"""Certificates that a sandbox is shown for the hosts of its rules.

Each sandbox trusts an authority of its own, which may sign for the domains of its
rules and nothing else. Leaves live for days and are made anew after hours; all
begin in the past: a guest's clock may be behind (after a pause) or ahead.
"""

from __future__ import annotations

import datetime
from collections.abc import Collection
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CLOCKS_DIFFER = datetime.timedelta(days=2)
_CA_LIFE = datetime.timedelta(days=398)
_LEAF_LIFE = datetime.timedelta(days=7)


@dataclass(frozen=True, slots=True, kw_only=True)
class Authority:
    """PEM texts. `certificate` is what the sandbox trusts."""

    certificate: str
    key: str = field(repr=False)


def new_authority(domains: Collection[str]) -> Authority:
    """An authority that may sign for `domains` (``a.example``, ``*.example``) alone."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Firkin egress of this sandbox")])
    begin = _now() - CLOCKS_DIFFER
    builder = _builder(name, name, key, begin, begin + _CA_LIFE)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
    permitted = sorted({domain.lower().removeprefix("*.") for domain in domains})
    if permitted and "*" not in permitted:
        names = x509.NameConstraints([x509.DNSName(domain) for domain in permitted], None)
        builder = builder.add_extension(names, critical=True)
    return Authority(certificate=_pem(builder.sign(key, hashes.SHA256())), key=_key_pem(key))


class Issuer:
    """Signs leaves with an `Authority`."""

    def __init__(self, certificate: str, key: str) -> None:
        self._certificate = x509.load_pem_x509_certificate(certificate.encode())
        loaded = serialization.load_pem_private_key(key.encode(), None)
        assert isinstance(loaded, ec.EllipticCurvePrivateKey)
        self._key = loaded

    def leaf(self, name: str) -> str:
        """A certificate for `name` and its key, as one PEM text."""
        key = ec.generate_private_key(ec.SECP256R1())
        begin = _now() - CLOCKS_DIFFER
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
        builder = _builder(subject, self._certificate.subject, key, begin, begin + _LEAF_LIFE)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_usage(signs_certificates=False), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        by = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        signed = builder.add_extension(by, critical=False).sign(self._key, hashes.SHA256())
        return _key_pem(key) + _pem(signed)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    begin: datetime.datetime,
    end: datetime.datetime,
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder(
        issuer_name=issuer,
        subject_name=subject,
        public_key=key.public_key(),
        serial_number=x509.random_serial_number(),
        not_valid_before=begin,
        not_valid_after=end,
    )
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC).replace(microsecond=0)


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()).decode()
