"""HTTP/2 without TLS: led by address, and refused for the same reasons as what names no host in HTTP/1.1."""

from __future__ import annotations

import socket

import pytest
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import ConnectionTerminated

from firkin.gateway.cleartext_h2 import begins_with_preface, judge_by_address, turn_away
from firkin.gateway.judgement import Refusal, Refused
from firkin.gateway.orders import SandboxOrder
from firkin.gateway.tenants import Tenant
from firkin.law.network import EVERYWHERE, HeaderRule, NetworkPolicy

RULE = HeaderRule(domain="api.test", headers={"X-Team": "a"})
OPEN = NetworkPolicy(internet=True, deny_out=("9.9.8.0/24",), rules=(RULE,))
BY_NAME = NetworkPolicy(allow_out=("api.test", "8.8.8.8", "10.0.0.1"), deny_out=(EVERYWHERE,), rules=(RULE,))


def refusal(policy: NetworkPolicy, address: str) -> Refusal | None:
    tenant = Tenant(SandboxOrder(sandbox_id="s", address="198.18.0.2", policy=policy, secrets={}))
    tenant.told("api.test", ["7.7.7.7"])
    try:
        judge_by_address(tenant, address)
    except Refused as refused:
        return refused.why
    return None


@pytest.mark.parametrize(
    ("policy", "address", "why"),
    [
        (OPEN, "9.9.9.9", None),
        (OPEN, "9.9.8.7", Refusal.DENIED),
        (OPEN, "7.7.7.7", Refusal.CLEARTEXT_HTTP2),
        (OPEN, "10.0.0.1", Refusal.PRIVATE),
        (BY_NAME, "8.8.8.8", None),
        (BY_NAME, "9.9.9.9", Refusal.CLEARTEXT_HTTP2),
        (BY_NAME, "7.7.7.7", Refusal.CLEARTEXT_HTTP2),
        (BY_NAME, "10.0.0.1", None),
        (BY_NAME, "10.0.0.2", Refusal.PRIVATE),
    ],
)
def test_it_is_judged_by_address(policy: NetworkPolicy, address: str, why: Refusal | None) -> None:
    """Another protocol is advised only where that would help."""
    assert refusal(policy, address) is why


@pytest.mark.parametrize("why", [Refusal.CLEARTEXT_HTTP2, Refusal.PRIVATE])
def test_the_reason_is_told_in_its_own_words(why: Refusal) -> None:
    ours, guest = socket.socketpair()
    with ours, guest:
        client = H2Connection()
        client.initiate_connection()
        guest.send(client.data_to_send())
        assert begins_with_preface(ours)
        turn_away(ours, why)
        [gone] = [event for event in client.receive_data(guest.recv(4096)) if isinstance(event, ConnectionTerminated)]
    assert gone.error_code == ErrorCodes.HTTP_1_1_REQUIRED
    assert gone.additional_data == why.value.encode()
