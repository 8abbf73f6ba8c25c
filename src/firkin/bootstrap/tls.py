"""Which certificate the server shows, checked before anything is served.

A certificate that clients would refuse is refused here, at the start and in one
sentence, instead of later and by each of them.
"""

from __future__ import annotations

import datetime
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from firkin.bootstrap.certificates import CA_FILE, CERT_FILE, KEY_FILE, names_of
from firkin.law.errors import InvalidReason, InvalidSpec
from firkin.settings import Settings

TLS_FOLDER = "tls"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedCertificate:
    """A certificate and its key that fit together, the time and the domain. `ca` is None for the operator's own."""

    certificate: Path
    key: Path
    ca: Path | None
    until: datetime.datetime

    def context(self) -> ssl.SSLContext:
        """TLS 1.2 and later, HTTP/1.1."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        try:
            context.load_cert_chain(self.certificate, self.key)
        except (OSError, ssl.SSLError) as error:
            raise _refused(f"{self.certificate} and {self.key} cannot be used: {error.strerror or error}") from None
        return context


def served_certificate(settings: Settings) -> ServedCertificate | None:
    """What the settings ask for; None without TLS. Raises `InvalidSpec` with what is wrong and what mends it."""
    if settings.tls_cert is not None or settings.tls_key is not None:
        if settings.tls_cert is None or settings.tls_key is None:
            raise _refused("--tls-cert and --tls-key go together; give both")
        return _checked(settings.tls_cert, settings.tls_key, None, settings.domain)
    if not settings.tls:
        return None
    folder = settings.state_dir / TLS_FOLDER
    return _checked(folder / CERT_FILE, folder / KEY_FILE, folder / CA_FILE, settings.domain)


def _checked(certificate: Path, key: Path, ca: Path | None, domain: str) -> ServedCertificate:
    mend = "renew it" if ca is None else "renew it with: firkin tls init"
    chain = _read(certificate, ca)
    try:
        leaf = x509.load_pem_x509_certificate(chain)
    except ValueError:
        raise _refused(f"{certificate} is not a certificate in PEM") from None
    now = datetime.datetime.now(datetime.UTC)
    if leaf.not_valid_after_utc <= now:
        raise _refused(f"the certificate {certificate} expired on {leaf.not_valid_after_utc:%Y-%m-%d}; {mend}")
    if leaf.not_valid_before_utc > now:
        raise _refused(
            f"the certificate {certificate} is valid only from {leaf.not_valid_before_utc:%Y-%m-%d}; set the clock"
        )
    _check_key(leaf, certificate, _read(key, ca), key)
    _check_names(leaf, certificate, domain)
    return ServedCertificate(certificate=certificate, key=key, ca=ca, until=leaf.not_valid_after_utc)


def _read(path: Path, ca: Path | None) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        mend = "" if ca is None else "; make it with: firkin tls init"
        raise _refused(f"{path} does not exist{mend}") from None
    except OSError as error:
        raise _refused(f"{path} cannot be read: {error.strerror}") from None


def _check_key(leaf: x509.Certificate, certificate: Path, text: bytes, path: Path) -> None:
    try:
        key = serialization.load_pem_private_key(text, None)
    except TypeError:
        raise _refused(
            f"the key {path} is encrypted; give one without a passphrase, readable by its owner only"
        ) from None
    except ValueError:
        raise _refused(f"{path} is not a private key in PEM") from None
    if key.public_key() != leaf.public_key():
        raise _refused(f"the key {path} does not belong to the certificate {certificate}")


def _check_names(leaf: x509.Certificate, certificate: Path, domain: str) -> None:
    host = domain.partition(":")[0]
    names = names_of(leaf)
    if f"*.{host}" not in names:
        raise _refused(
            f"the certificate {certificate} is for {', '.join(names) or 'no name'}, not for *.{host}, "
            "under which sandboxes are reached; use another or another --domain"
        )


def _refused(detail: str) -> InvalidSpec:
    return InvalidSpec("serve TLS", InvalidReason.INVALID_SETTINGS, detail)
