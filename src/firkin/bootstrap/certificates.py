"""A certificate authority of this machine's own, and the certificate that a server shows.

The authority may sign only for its domain and the loopback, so that whoever
trusts it trusts it for nothing else. Everything is readable by its owner only.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from firkin.bootstrap.state_files import TRUST_FILE, replace_file
from firkin.host import certificates
from firkin.host.system_authorities import system_authorities
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
        replace_file(folder / CA_KEY_FILE, certificates.key_pem(authority.key))
        replace_file(folder / CA_FILE, certificates.pem(authority.certificate))
    key = certificates.new_key()
    certificate = _signed(authority, key, domain)
    replace_file(folder / KEY_FILE, certificates.key_pem(key))
    replace_file(folder / CERT_FILE, certificates.pem(certificate))
    # Variables that name a file of authorities name it instead of the system's, so it has those too.
    system = system_authorities().decode(errors="replace").rstrip("\n")
    replace_file(folder / TRUST_FILE, f"{system}\n" + certificates.pem(authority.certificate))
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
    if certificate.not_valid_after_utc <= certificates.now() + datetime.timedelta(days=1):
        raise _refused(f"the authority in {folder} has expired; remove the folder and make another")
    names = [each.value for each in permitted if isinstance(each, x509.DNSName)]
    if not any(domain == name or domain.endswith(f".{name}") for name in names):
        raise _refused(
            f"the authority in {folder} may sign for {names[0] if names else 'nothing'} only; "
            f"choose another folder for {domain} with --dir"
        )
    return _Authority(certificate, key)


def _new_authority(domain: str) -> _Authority:
    key = certificates.new_key()
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Firkin"),
            x509.NameAttribute(NameOID.COMMON_NAME, f"Firkin CA {os.urandom(4).hex()}"),
        ]
    )
    permitted: list[x509.GeneralName] = [x509.DNSName(domain), x509.DNSName("localhost")]
    permitted += [x509.IPAddress(network) for network in _LOOPBACK]
    begin = certificates.now() - _CLOCKS_DIFFER
    life = (begin, begin + datetime.timedelta(days=_CA_DAYS))
    return _Authority(certificates.authority(key, name, life, permitted), key)


def _signed(authority: _Authority, key: ec.EllipticCurvePrivateKey, domain: str) -> x509.Certificate:
    names: list[x509.GeneralName] = [x509.DNSName(name) for name in (domain, f"*.{domain}", "localhost")]
    names += [x509.IPAddress(network.network_address) for network in _LOOPBACK]
    subject = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Firkin")])
    begin = certificates.now() - _CLOCKS_DIFFER
    end = min(begin + datetime.timedelta(days=_CERT_DAYS), authority.certificate.not_valid_after_utc)
    return certificates.leaf(key, subject, (begin, end), names, issuer=authority.certificate, issuer_key=authority.key)


def _refused(detail: str) -> InvalidSpec:
    return InvalidSpec("make a certificate", InvalidReason.INVALID_SETTINGS, detail)


def names_of(certificate: x509.Certificate) -> Sequence[str]:
    """The DNS names that a certificate is for, in lower case."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    return [name.lower() for name in found.get_values_for_type(x509.DNSName)]
