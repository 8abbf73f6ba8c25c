"""The authorities that this machine trusts."""

from __future__ import annotations

import ssl
from pathlib import Path

_ELSEWHERE = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt")


def system_authorities() -> bytes:
    """The bundle (PEM) that OpenSSL reads, or the distribution's; empty where there is none."""
    for path in (ssl.get_default_verify_paths().openssl_cafile, *_ELSEWHERE):
        try:
            return Path(path).read_bytes()
        except OSError:
            continue
    return b""
