"""Certificates: what a sandbox's authority may sign for, and for how long."""

from __future__ import annotations

import datetime
import socket
import ssl
import threading

import pytest
from cryptography import x509

from firkin.gateway.authorities import Authority, Issuer, new_authority
from firkin.gateway.orders import SandboxOrder
from firkin.gateway.tenants import Tenant
from firkin.law.network import HeaderRule, NetworkPolicy


def shake_hands(server: ssl.SSLContext, trust: Authority, name: str) -> None:
    """Raises what the client makes of it."""
    ours, theirs = socket.socketpair()

    def serve() -> None:
        try:
            server.wrap_socket(theirs, server_side=True).close()
        except OSError:
            theirs.close()

    thread = threading.Thread(target=serve)
    thread.start()
    context = ssl.create_default_context(cadata=trust.certificate)
    try:
        context.wrap_socket(ours, server_hostname=name).close()
    finally:
        ours.close()
        thread.join(5)


def tenant(*domains: str, authority: Authority) -> Tenant:
    rules = tuple(HeaderRule(domain=domain, headers={"A": "b"}) for domain in domains)
    policy = NetworkPolicy(internet=True, rules=rules)
    order = SandboxOrder(
        sandbox_id="s",
        address="198.18.0.2",
        policy=policy,
        authority=authority.certificate,
        authority_key=authority.key,
    )
    return Tenant(order)


def test_a_client_that_trusts_it_takes_what_is_shown() -> None:
    authority = new_authority(["api.test", "*.b.test"])
    shown = tenant("api.test", "*.b.test", authority=authority)
    for name in ("api.test", "x.b.test"):
        shake_hands(shown.shown(name), authority, name)
    assert shown.shown("api.test") is shown.shown("api.test")


def test_it_can_sign_for_no_other_host() -> None:
    authority = new_authority(["api.test"])
    shown = tenant("api.test", authority=authority)
    with pytest.raises(ssl.SSLCertVerificationError, match="permitted subtree"):
        shake_hands(shown.shown("bank.test"), authority, "bank.test")


def test_another_sandbox_s_authority_is_not_trusted() -> None:
    shown = tenant("api.test", authority=new_authority(["api.test"]))
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(shown.shown("api.test"), new_authority(["api.test"]), "api.test")


def test_clocks_that_are_days_off_do_no_harm() -> None:
    authority = new_authority(["api.test"])
    pem = Issuer(authority.certificate, authority.key).leaf("api.test")
    now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
    for text in (pem[pem.index("-----BEGIN CERT") :], authority.certificate):
        certificate = x509.load_pem_x509_certificate(text.encode())
        assert certificate.not_valid_before_utc < now - day
        assert certificate.not_valid_after_utc > now + 4 * day
