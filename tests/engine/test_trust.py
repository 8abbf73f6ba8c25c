"""What a sandbox is made to trust, and what of its network leaves the machine."""

from __future__ import annotations

from firkin.engine.sealed_policies import without_password
from firkin.engine.trust import with_block
from firkin.law.network import EgressProxy, NetworkPolicy

PEM = b"-----BEGIN CERTIFICATE-----\nnew\n-----END CERTIFICATE-----\n"


def test_an_authority_takes_the_place_of_an_earlier_one() -> None:
    once = with_block(b"system\n", b"old\n")
    twice = with_block(once, PEM)
    assert twice == with_block(b"system\n", PEM)
    assert b"old" not in twice


def test_a_bundle_without_a_last_line_end_stays_readable() -> None:
    assert with_block(b"system", PEM).startswith(b"system\n# Firkin egress: begin\n-----BEGIN")


def test_what_a_sandbox_added_behind_the_block_stays() -> None:
    assert with_block(with_block(b"system\n", b"old\n") + b"own\n", PEM).startswith(b"system\nown\n")


def test_a_block_that_was_cut_off_ends_with_the_file() -> None:
    assert with_block(b"system\n# Firkin egress: begin\nold", PEM) == with_block(b"system\n", PEM)


def test_a_proxy_s_password_stays_here() -> None:
    policy = NetworkPolicy(egress_proxy=EgressProxy(address="p.test:1", username="u", password="secret"))
    assert "secret" not in repr(policy)
    assert without_password(policy).egress_proxy == EgressProxy(address="p.test:1", username="u")
    assert without_password(NetworkPolicy()) == NetworkPolicy()
