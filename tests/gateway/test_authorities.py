"""Certificates: what a sandbox's authority may sign for, and for how long."""

from __future__ import annotations

import datetime
import socket
import ssl
import threading

import pytest
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

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


NOW = datetime.datetime(2026, 11, 28, 12, tzinfo=datetime.UTC)
HOUR, DAY = datetime.timedelta(hours=1), datetime.timedelta(days=1)


class Hand:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime.datetime:
        return self.now


def shown_leaf(server: ssl.SSLContext) -> x509.Certificate:
    """What a client sees, whatever it thinks of that."""
    ours, theirs = socket.socketpair()
    thread = threading.Thread(target=lambda: server.wrap_socket(theirs, server_side=True).close())
    thread.start()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with context.wrap_socket(ours) as client:
        raw = client.getpeercert(binary_form=True)
    thread.join(5)
    assert raw is not None
    return x509.load_der_x509_certificate(raw)


def is_taken(leaf: x509.Certificate, authority: Authority, at: datetime.datetime) -> bool:
    """By a client that trusts `authority`, whose clock says `at`."""
    trusted = Store([x509.load_pem_x509_certificate(authority.certificate.encode())])
    verifier = PolicyBuilder().store(trusted).time(at).build_server_verifier(x509.DNSName("api.test"))
    try:
        verifier.verify(leaf, [])
    except VerificationError:
        return False
    return True


def at_work(authority: Authority, clock: Hand) -> Tenant:
    made = tenant("api.test", authority=authority)
    return Tenant(made.order, clock)


@pytest.mark.parametrize("jump", [13 * HOUR, 30 * DAY, 170 * DAY, -HOUR, -DAY], ids=str)
def test_after_a_pause_or_a_jump_of_the_clock_a_fresh_leaf_is_shown(jump: datetime.timedelta) -> None:
    clock, authority = Hand(), new_authority(["api.test"], NOW)
    guest = at_work(authority, clock)
    before = shown_leaf(guest.shown("api.test"))
    assert is_taken(before, authority, NOW)
    clock.now += jump
    after = shown_leaf(guest.shown("api.test"))
    assert authority.serves(clock.now)
    assert after != before
    for off in (-DAY, 0 * DAY, DAY):  # the guest's clock is not quite the gateway's
        assert is_taken(after, authority, clock.now + off)
    if jump > 7 * DAY:
        assert not is_taken(before, authority, clock.now), "the old one would have been refused"


def test_a_leaf_is_kept_for_hours() -> None:
    clock, authority = Hand(), new_authority(["api.test"], NOW)
    guest = at_work(authority, clock)
    first = guest.shown("api.test")
    clock.now += 11 * HOUR
    assert guest.shown("api.test") is first


@pytest.mark.parametrize("jump", [181 * DAY, 400 * DAY, -2 * DAY, -30 * DAY], ids=str)
def test_an_authority_that_is_old_or_of_the_future_is_replaced_before_it_fails(jump: datetime.timedelta) -> None:
    now = NOW + jump
    assert new_authority(["api.test"], NOW).serves(NOW)
    assert not new_authority(["api.test"], NOW).serves(now)
    fresh = new_authority(["api.test"], now)
    assert fresh.serves(now)
    clock = Hand()
    clock.now = now
    assert is_taken(shown_leaf(at_work(fresh, clock).shown("api.test")), fresh, now)
