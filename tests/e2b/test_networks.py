"""What is shown of a policy can be written back."""

from __future__ import annotations

from firkin.e2b.networks import shown
from firkin.law.network import EVERYWHERE, EgressProxy, NetworkPolicy

from .test_wording import sandbox


def test_a_proxys_tls_is_shown_without_what_is_secret() -> None:
    proxy = EgressProxy(
        address="p.test:1", username="u", password="secret", tls=True, tls_server_name="p.x", tls_ca="pem"
    )
    policy = NetworkPolicy(internet=True, deny_out=(EVERYWHERE,), egress_proxy=proxy)
    of = sandbox("i1", 0, network=policy)
    tls = {"enabled": True, "serverName": "p.x"}
    assert shown(of)["egressProxy"] == {"address": "p.test:1", "username": "u", "tls": tls}
