"""A certificate authority of this machine's own, and the certificate that a server shows.

The authority may sign only for its domain and the loopback, so that whoever
trusts it trusts it for nothing else. Everything is readable by its owner only.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import re
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from firkin.bootstrap.state_files import TRUST_FILE, replace_file
from firkin.law.errors import InvalidReason, InvalidSpec, IoFailure

CA_FILE = "ca.pem"
CA_KEY_FILE = "ca-key.pem"
CERT_FILE = "cert.pem"
KEY_FILE = "key.pem"

_CA_DAYS = 3653
_CERT_DAYS = 397  # the longest that browsers take
_CLOCKS_DIFFER = datetime.timedelta(hours=1)
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_LOOPBACK = (ipaddress.ip_network("127.0.0.1/32"), ipaddress.ip_network("::1/128"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """What `issue` made. `ca_is_new` says whether clients have to be told to trust it."""

    folder: Path
    names: tuple[str, ...]
    ca_is_new: bool
    ca_until: datetime.datetime
    until: datetime.datetime


@dataclass(frozen=True, slots=True)
class _Authority:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def issue(folder: Path, domain: str, *, only_renew: bool = False) -> Issued:
    """Make a certificate for `domain` and everything one label below, and the authority unless `folder` has it.

    Raises `InvalidSpec` for a domain that no certificate can be for, and for an
    authority of another domain, and with `only_renew` when there is none yet.
    """
    _check_domain(domain)
    authority = _existing(folder, domain)
    if authority is None and only_renew:
        raise _refused(f"there is no authority in {folder} to renew a certificate of; run it without --renew")
    _make(folder)
    is_new = authority is None
    if authority is None:
        authority = _new_authority(domain)
        replace_file(folder / CA_KEY_FILE, _key_pem(authority.key))
        replace_file(folder / CA_FILE, _pem(authority.certificate))
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _signed(authority, key, domain)
    replace_file(folder / KEY_FILE, _key_pem(key))
    replace_file(folder / CERT_FILE, _pem(certificate))
    replace_file(folder / TRUST_FILE, _system_authorities() + _pem(authority.certificate))
    return Issued(
        folder=folder,
        names=(domain, f"*.{domain}", "localhost", "127.0.0.1", "::1"),
        ca_is_new=is_new,
        ca_until=authority.certificate.not_valid_after_utc,
        until=certificate.not_valid_after_utc,
    )


def _make(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise IoFailure("make", str(folder), error.strerror or str(error)) from None


def _check_domain(domain: str) -> None:
    labels = domain.split(".")
    if len(domain) > 200 or len(labels) < 2 or not all(_LABEL.fullmatch(label) for label in labels):
        raise _refused(
            f"{domain[:80]!r} is no domain that a wildcard certificate can be for; "
            "give one of two labels or more, in lower case and without a port, such as firkin.localhost"
        )
    if labels[-1].isdigit():
        raise _refused(f"{domain} is an address; give a domain name, below which every sandbox has a name of its own")


def _existing(folder: Path, domain: str) -> _Authority | None:
    path = folder / CA_FILE
    if not path.exists() and not (folder / CA_KEY_FILE).exists():
        return None
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
        key = serialization.load_pem_private_key((folder / CA_KEY_FILE).read_bytes(), None)
        permitted = certificate.extensions.get_extension_for_class(x509.NameConstraints).value.permitted_subtrees or ()
    except (OSError, ValueError, TypeError, x509.ExtensionNotFound) as error:
        raise _refused(
            f"the authority in {folder} cannot be read ({error}); choose another folder with --dir"
        ) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise _refused(f"{CA_FILE} and {CA_KEY_FILE} in {folder} do not belong together; choose another --dir")
    if certificate.not_valid_after_utc <= _now() + datetime.timedelta(days=1):
        raise _refused(f"the authority in {folder} has expired; remove the folder and make another")
    names = [each.value for each in permitted if isinstance(each, x509.DNSName)]
    if not any(domain == name or domain.endswith(f".{name}") for name in names):
        raise _refused(
            f"the authority in {folder} may sign for {names[0] if names else 'nothing'} only; "
            f"choose another folder for {domain} with --dir"
        )
    return _Authority(certificate, key)


def _new_authority(domain: str) -> _Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Firkin"),
            x509.NameAttribute(NameOID.COMMON_NAME, f"Firkin CA {os.urandom(4).hex()}"),
        ]
    )
    permitted: list[x509.GeneralName] = [x509.DNSName(domain), x509.DNSName("localhost")]
    permitted += [x509.IPAddress(network) for network in _LOOPBACK]
    begin = _now() - _CLOCKS_DIFFER
    builder = _builder(name, name, key, begin, begin + datetime.timedelta(days=_CA_DAYS))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
    builder = builder.add_extension(x509.NameConstraints(permitted, None), critical=True)
    return _Authority(builder.sign(key, hashes.SHA256()), key)


def _signed(authority: _Authority, key: ec.EllipticCurvePrivateKey, domain: str) -> x509.Certificate:
    names: list[x509.GeneralName] = [x509.DNSName(name) for name in (domain, f"*.{domain}", "localhost")]
    names += [x509.IPAddress(network.network_address) for network in _LOOPBACK]
    subject = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Firkin")])
    begin = _now() - _CLOCKS_DIFFER
    end = min(begin + datetime.timedelta(days=_CERT_DAYS), authority.certificate.not_valid_after_utc)
    builder = _builder(subject, authority.certificate.subject, key, begin, end)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    by = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
    return builder.add_extension(by, critical=False).sign(authority.key, hashes.SHA256())


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
    plain = serialization.NoEncryption()
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, plain).decode()


def _system_authorities() -> str:
    """Those that the system trusts: variables that name a file of authorities name it instead of the system's."""
    path = ssl.get_default_verify_paths().openssl_cafile
    candidates = (path, "/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt")
    for candidate in candidates:
        try:
            text = Path(candidate).read_text()
        except OSError:
            continue
        return text if text.endswith("\n") else text + "\n"
    return ""


def _refused(detail: str) -> InvalidSpec:
    return InvalidSpec("make a certificate", InvalidReason.INVALID_SETTINGS, detail)


def names_of(certificate: x509.Certificate) -> Sequence[str]:
    """The DNS names that a certificate is for, in lower case."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    return [name.lower() for name in found.get_values_for_type(x509.DNSName)]
